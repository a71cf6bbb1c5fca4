"""The networks put together: a request is encoded once, then generated chunk by chunk."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from talkinghead_lab.foundation.devices import GIB, compute_type, decode_type, pick_device
from talkinghead_lab.media import audio
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.media.reference import ReferenceMedia
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoder
from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.models.encoders.text import TextEncoder, Tokenizer
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.offload.requirements import STREAMED_BLOCKS, Requirements, StageMemory, requirements
from talkinghead_lab.offload.residency import handle_out_of_memory, within_budget
from talkinghead_lab.offload.streamed_blocks import stream
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncodingStore, no_cache
from talkinghead_lab.pipeline.plan import planned_for
from talkinghead_lab.pipeline.stages import Stage, no_stage
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.transformer import load_transformer


@dataclass(frozen=True)
class Conditions:
    """A request, encoded.

    Args:
        prompt, negative_prompt: text embeddings [n, text width].
        audio: a wav2vec2 embedding [frames, layers, channels] for each speaker, equally long.
        source: what the frames are made from.
        frame_size: (W, H).
    """

    prompt: Tensor
    negative_prompt: Tensor
    audio: tuple[Tensor, ...]
    source: ReferenceMedia
    frame_size: tuple[int, int]


@dataclass
class Pipeline:
    """Loaded networks.

    The encoders of text and speech may be absent where their results are given as `Conditions`. With a
    `budget`, in bytes of device memory, all networks lie in host memory: each visits the device for its
    stage, and the blocks of the large ones stream.
    """

    dit: DiT
    vae: VAE
    image_encoder: ImageEncoder
    text_encoder: TextEncoder | None = None
    tokenizer: Tokenizer | None = None
    speech_encoder: SpeechEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    budget: int | None = None

    @classmethod
    def load(cls, params: GenerationParams) -> "Pipeline":
        """Read the checkpoint that a request names, with its LoRAs, in its precision and for its budget.

        Raises:
            InvalidRequest: the device is not there.
            CheckpointError: see `checkpoints` and `lora`.
            OutOfMemory: the networks do not fit.
        """
        device, gib = pick_device(params.device), params.vram_budget_gib
        budget = None if gib is None else round(gib * GIB)
        with torch.inference_mode(False):  # weights must be tensors whose values can be exchanged
            return handle_out_of_memory(
                lambda: cls._load(params, device, budget), device, lambda: planned_for(params), budget
            )

    @classmethod
    def _load(cls, params: GenerationParams, device: torch.device, budget: int | None) -> "Pipeline":
        compute, files = compute_type(params.precision, device), checkpoints.locate(params)
        place = device if budget is None else torch.device("cpu")
        dit = load_transformer(params, files, device, offloaded=budget is not None)
        text_encoder = checkpoints.load_text_encoder(files, compute, place)
        if budget is not None:
            # It runs once: locking its memory would take longer than copying from where it is.
            stream(text_encoder, STREAMED_BLOCKS["text encoder"], device, page_locked=False)
        return cls(
            dit=dit,
            vae=checkpoints.load_vae(files, torch.float32, place).decode_in(decode_type(compute, device)),
            image_encoder=checkpoints.load_image_encoder(files, compute, place),
            text_encoder=text_encoder,
            tokenizer=checkpoints.load_tokenizer(files, dit.config.text_len),
            speech_encoder=checkpoints.load_speech_encoder(files, torch.float32, place),
            device=device,
            budget=budget,
        )

    def requirements(
        self, params: GenerationParams, frame_size: tuple[int, int], seconds: float
    ) -> Requirements:
        """The memory that a request takes with these networks."""
        networks: dict[str, nn.Module | None] = {
            "transformer": self.dit,
            "video autoencoder": self.vae,
            "text encoder": self.text_encoder,
            "image encoder": self.image_encoder,
            "speech encoder": self.speech_encoder,
        }
        present = {name: network for name, network in networks.items() if network is not None}
        return requirements(present, self.device, params, frame_size, seconds)

    def use(self, network: nn.Module, need: StageMemory | None = None) -> AbstractContextManager[object]:
        """Have a network on the device for a while; without its `need`, streamed blocks stay on the host."""
        return (
            nullcontext() if self.budget is None else within_budget(network, self.device, self.budget, need)
        )

    def encode(
        self,
        inputs: Inputs,
        params: GenerationParams,
        stage: Stage = no_stage,
        cache: EncodingStore = no_cache,
    ) -> Conditions:
        """Encode the texts and recordings of a request.

        Raises:
            InvalidRequest: the budget is too small for the networks.
            OutOfMemory: the device is.
        """
        plan = self.requirements(params, inputs.frame_size, inputs.seconds)
        if self.budget is not None:
            plan.check(self.budget)
        with torch.inference_mode():
            encode = partial(self._encode, inputs, params, plan, stage, cache)
            return handle_out_of_memory(encode, self.device, lambda: plan, self.budget)

    def _encode(
        self, inputs: Inputs, params: GenerationParams, plan: Requirements, stage: Stage, cache: EncodingStore
    ) -> Conditions:
        text = self.text_encoder
        assert text and self.tokenizer and self.speech_encoder, "needs the encoders"
        texts = (params.prompt, params.negative_prompt)
        with stage("text"):
            key = [*texts, _type(text)]
            prompt, negative = cache("text", key, lambda: self._read(texts, plan.needs["text"]))
        with stage("audio"):
            heard = tuple(self._hear(torch.from_numpy(voice), cache) for voice in inputs.voices)
        prompt, negative = prompt.to(self.device), negative.to(self.device)
        return Conditions(prompt, negative, heard, inputs.source, inputs.frame_size)

    def _read(self, texts: tuple[str, ...], need: StageMemory) -> tuple[Tensor, ...]:
        assert self.text_encoder and self.tokenizer
        with self.use(self.text_encoder, need):
            return tuple(self.text_encoder.encode(texts, self.tokenizer))

    def _hear(self, wave: Tensor, cache: EncodingStore) -> Tensor:
        encoder = self.speech_encoder
        assert encoder
        frames = audio.frame_count(wave.numpy())

        def compute() -> tuple[Tensor, ...]:
            with self.use(encoder):
                return (encoder(wave.to(self.device), frames).cpu(),)

        (heard,) = cache("audio", [wave, _type(encoder)], compute)
        return heard

    def see(self, picture: Tensor) -> Tensor:
        """The image encoder's features of [1, 3, H, W] in [−1, 1]: [1, tokens, channels]."""
        with self.use(self.image_encoder):
            return self.image_encoder(picture.to(self.device))


def _type(network: nn.Module) -> str:
    """The type that a network computes in."""
    return str(next(network.parameters()).dtype)
