"""The networks put together: they encode a request once, then serve its chunks."""

import gc
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import empty_cache
from talkinghead_lab.media import audio
from talkinghead_lab.media.inputs import Inputs, Shot
from talkinghead_lab.media.mask_files import Mask
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import ReferenceMedia
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoder
from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.models.encoders.text import TextEncoder, Tokenizer
from talkinghead_lab.models.vae.model import KERNELS as VAE_KERNELS
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.offload.requirements import STREAMED_BLOCKS, Requirements, StageMemory
from talkinghead_lab.offload.residency import free_weights, handle_out_of_memory, within_budget
from talkinghead_lab.offload.streamed_blocks import stream
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.encoder_cache import EncodingStore, no_cache
from talkinghead_lab.pipeline.plan import needed_memory, planned
from talkinghead_lab.pipeline.request import Resolved, load_settings, memory_budget, resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.pipeline.stages import Stage, no_stage
from talkinghead_lab.weights.checkpoints import NETWORKS, load_network, load_tokenizer
from talkinghead_lab.weights.load_settings import LoadSettings
from talkinghead_lab.weights.transformer import load_transformer

TEXTS_AT_ONCE = 2  # the memory plan assumes as many


@dataclass(frozen=True)
class Conditions:
    """The encoded texts, recordings and picture of a request.

    Args:
        prompt: text embedding [n, text width].
        negative_prompt: likewise.
        audio: a wav2vec2 embedding [frames, layers, channels] per speaker, equally long, in host memory.
        reference: portrait or driving video.
        frame_size: (W, H).
        continued: overlap frames of the first chunk, [3, motion_frame, H, W] in [−1, 1], from the end of an
            earlier video.
        masks: where the speakers are in the picture, if that is drawn.
        later: shots after the first, in order.
        later_prompts: text embeddings of the prompts after the first.
        lips_mask: white where a driving video is sampled anew; None: on the lower face.
    """

    prompt: Tensor
    negative_prompt: Tensor
    audio: tuple[Tensor, ...]
    reference: ReferenceMedia
    frame_size: tuple[int, int]
    continued: Tensor | None = None
    masks: tuple[Mask, ...] = ()
    later: tuple[Shot, ...] = ()
    later_prompts: tuple[Tensor, ...] = ()
    lips_mask: ReferenceMedia | None = None


@dataclass
class Pipeline:
    """Loaded networks.

    The text and speech encoders may be absent where their results are given as `Conditions`. With a budget,
    all networks stay in host memory; each moves to the device for one stage, and the blocks of the large
    ones are streamed.

    Args:
        dit: the transformer.
        vae: the video autoencoder.
        image_encoder: for the first frame of each chunk.
        text_encoder: for the prompts.
        tokenizer: for the prompts.
        speech_encoder: for the recordings.
        device: where the networks run.
        budget: device memory to stay within, in bytes; None: all weights stay on the device.
        loaded_as: the settings that the networks were loaded with; None: put together by hand.
    """

    dit: DiT
    vae: VAE
    image_encoder: ImageEncoder
    text_encoder: TextEncoder | None = None
    tokenizer: Tokenizer | None = None
    speech_encoder: SpeechEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    budget: int | None = None
    loaded_as: LoadSettings | None = None

    @classmethod
    def load(cls, request: GenerationParams, inputs: Inputs | None = None, encodes: bool = True) -> Self:
        """Load the networks of a request: its checkpoint and LoRAs, in its precision and for its budget.

        Args:
            request: names the networks.
            inputs: its media, if they were read already; they tell how much memory is needed, if it is short.
            encodes: whether this process encodes texts and recordings, or receives them from another.

        Raises:
            InvalidRequest: the device or the attention kernel is not available.
            CheckpointError: see `weights.checkpoints` and `weights.lora`.
            OutOfMemory: the networks do not fit.
        """
        settings, budget = load_settings(request), memory_budget(request)

        def plan() -> Requirements:
            return planned(resolve(request, inputs or read_inputs(request)))

        try:
            with torch.inference_mode(False):  # inference tensors could not be exchanged later
                pipeline = handle_out_of_memory(
                    lambda: cls._load(settings, encodes), settings.device, plan, budget
                )
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold the networks that were loaded so far
            raise
        return replace(pipeline, budget=budget)

    @classmethod
    def _load(cls, settings: LoadSettings, encodes: bool) -> Self:
        place = torch.device("cpu") if settings.offloaded else settings.device
        dit = load_transformer(settings)
        others = {
            name: load_network(name, settings.files, settings.compute, place)
            for name in NETWORKS
            if name != "transformer" and (encodes or name not in ("text encoder", "speech encoder"))
        }
        if settings.offloaded and encodes:
            # It runs once per request: page-locking its memory would take longer than the slower copies.
            blocks = STREAMED_BLOCKS["text encoder"]
            stream(others["text encoder"], blocks, settings.device, page_locked=False)
        vae = cast(VAE, others["video autoencoder"])
        return cls(
            dit=dit,
            vae=vae.set_decoder_dtype(settings.decode).use_kernels(settings.device),
            image_encoder=cast(ImageEncoder, others["image encoder"]),
            text_encoder=cast(TextEncoder | None, others.get("text encoder")),
            tokenizer=load_tokenizer(settings.files, dit.config.text_len) if encodes else None,
            speech_encoder=cast(SpeechEncoder | None, others.get("speech encoder")),
            device=settings.device,
            loaded_as=settings,
        )

    def release(self) -> None:
        """Free the networks' memory, before others are loaded; the pipeline cannot be used afterwards."""
        for network in self._networks().values():
            free_weights(network)
        gc.collect()
        empty_cache(self.device)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module | None] = {
            "transformer": self.dit,
            "video autoencoder": self.vae,
            "text encoder": self.text_encoder,
            "image encoder": self.image_encoder,
            "speech encoder": self.speech_encoder,
        }
        return {name: network for name, network in networks.items() if network is not None}

    def fits(self, settings: LoadSettings) -> bool:
        """Whether loading with these settings would give the same networks, from unchanged files."""
        return self.loaded_as is None or self.loaded_as == settings

    def check_files(self) -> None:
        """Check that no weight file that is mapped into memory was overwritten.

        Raises:
            CheckpointError: one was, and the networks have changed with it.
        """
        if self.loaded_as is not None:
            self.loaded_as.check_mapped_files()

    def serving(self, resolved: Resolved) -> Self:
        """The same networks within the budget of a request.

        Raises:
            InvalidRequest: the request needs networks that are loaded differently.
        """
        if self.loaded_as is not None and not self.fits(resolved.networks):
            differing = self.loaded_as.differences(resolved.networks)
            raise InvalidRequest(
                "the loaded networks are not those of this request",
                received=", ".join(f"{name} {wanted}" for name, (_, wanted) in differing.items()),
                allowed=", ".join(f"{name} {loaded}" for name, (loaded, _) in differing.items()),
                remedy="Load a pipeline for this request, or leave `pipeline` out.",
            )
        if self.loaded_as is not None:  # fp16 may have overflowed in an earlier run
            with torch.inference_mode(False):
                self.vae.set_decoder_dtype(self.loaded_as.decode)
        return replace(self, budget=resolved.budget)

    def kernels(self) -> dict[str, Any]:
        """The kernels that run, for the record; see `DiT.kernels`."""
        kernels, status = self.dit.kernels(), self.vae.kernel_status
        optional = kernels["optional"] | {VAE_KERNELS: str(status)}
        return kernels | {"fused_vae_blocks": status.passed, "optional": optional}

    def requirements(self, resolved: Resolved) -> Requirements:
        """Compute the memory that a request needs with these networks."""
        return needed_memory(self._networks(), resolved)

    def use(self, network: nn.Module, memory: StageMemory | None = None) -> AbstractContextManager[object]:
        """Hold a network on the device; without the stage's `memory`, streamed blocks stay on the host."""
        if self.budget is None:
            return nullcontext()
        return within_budget(network, self.device, self.budget, memory)

    def encode(
        self,
        inputs: Inputs,
        resolved: Resolved,
        stage: Stage = no_stage,
        cache: EncodingStore = no_cache,
    ) -> Conditions:
        """Encode the texts and recordings of a request; of several processes, the first does it for all.

        Raises:
            InvalidRequest: the budget is too small for the networks.
            OutOfMemory: the device is.
        """
        plan = self.requirements(resolved)
        if self.budget is not None:
            plan.check(self.budget)
        with torch.inference_mode():
            encode = partial(self._encode, inputs, resolved.request, plan, stage, cache)
            return handle_out_of_memory(encode, self.device, lambda: plan, self.budget)

    def _encode(
        self,
        inputs: Inputs,
        request: GenerationParams,
        plan: Requirements,
        stage: Stage,
        cache: EncodingStore,
    ) -> Conditions:
        group, texts, voices = self.dit.group, [], []
        if group.rank == 0:
            texts = self._encode_prompts(request, plan, stage, cache)
            with stage("audio"):
                voices = [self._encode_voice(torch.from_numpy(voice), cache) for voice in inputs.voices]
        prompt, negative, *later = (text.to(self.device) for text in group.broadcast_rows(texts))
        voices = group.broadcast_rows(voices)
        continued = None if inputs.continued is None else to_unit_range(inputs.continued).transpose(0, 1)
        return Conditions(
            prompt,
            negative,
            tuple(voices),
            inputs.reference,
            inputs.frame_size,
            continued,
            inputs.masks,
            inputs.later,
            tuple(later),
            inputs.lips_mask,
        )

    def _encode_prompts(
        self, request: GenerationParams, plan: Requirements, stage: Stage, cache: EncodingStore
    ) -> list[Tensor]:
        assert self.text_encoder, "needs the text encoder"
        prompt, *later = (each.text for each in request.prompts)
        texts = (prompt, request.negative_prompt, *later)
        found: list[Tensor] = []
        with stage("text"):
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                part = texts[first : first + TEXTS_AT_ONCE]
                encode = partial(self._encode_texts, part, plan.needs["text"])
                found += cache("text", [*part, dtype_name(self.text_encoder)], encode)
        return found

    def _encode_texts(self, texts: tuple[str, ...], memory: StageMemory) -> tuple[Tensor, ...]:
        assert self.text_encoder
        assert self.tokenizer
        with self.use(self.text_encoder, memory):
            return tuple(self.text_encoder.encode(texts, self.tokenizer))

    def _encode_voice(self, wave: Tensor, cache: EncodingStore) -> Tensor:
        encoder = self.speech_encoder
        assert encoder
        frames = audio.frame_count(wave.numpy())

        def compute() -> tuple[Tensor, ...]:
            with self.use(encoder):
                return (encoder(wave, frames),)

        (embedding,) = cache("audio", [wave, dtype_name(encoder)], compute)
        return embedding

    def image_features(self, picture: Tensor) -> Tensor:
        """Encode a picture [1, 3, H, W] in [−1, 1]: [1, tokens, channels]."""
        with self.use(self.image_encoder):
            features: Tensor = self.image_encoder(picture.to(self.device))
            return features


def dtype_name(network: nn.Module) -> str:
    """The type that a network computes in."""
    return str(next(network.parameters()).dtype)
