"""The networks put together: a request is encoded once, then generated chunk by chunk."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from talkinghead_lab import audio, checkpoints
from talkinghead_lab.decoding import decode_chunk
from talkinghead_lab.devices import GIB, compute_type, decode_type, give_back, pick_device
from talkinghead_lab.encoder_cache import Remember, no_cache
from talkinghead_lab.errors import OutOfMemory
from talkinghead_lab.image import fit, match_colors, nearest_size, speaker_masks, to_unit_range
from talkinghead_lab.latent_grid import FRAMES_PER_LATENT, FRAMES_PER_SECOND, LatentGrid
from talkinghead_lab.loading import load_transformer
from talkinghead_lab.memory import STREAMED_BLOCKS, Need, Requirements, planned, requirements
from talkinghead_lab.models.dit import Context, DiT, token_regions
from talkinghead_lab.models.image_encoder import ImageEncoder
from talkinghead_lab.models.speech_encoder import SpeechEncoder
from talkinghead_lab.models.text_encoder import TextEncoder, Tokenizer
from talkinghead_lab.models.vae import VAE
from talkinghead_lab.offload import stream
from talkinghead_lab.params import GenerationParams, local_file
from talkinghead_lab.residency import recovering, visit
from talkinghead_lab.sampling import ChunkConditions, chunk_noise, sample_chunk
from talkinghead_lab.source import Source, open_source
from talkinghead_lab.streaming import Chunk, audio_windows, ease_seam, plan_chunks

# Gives a context that lasts as long as the named stage of the work: for clocks and memory meters.
Stage = Callable[[str], AbstractContextManager[object]]


def no_stage(name: str) -> AbstractContextManager[object]:
    """Measure nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Inputs:
    """The media of a request, read: the picture or video, (W, H) of the frames, a 16 kHz wave per speaker."""

    source: Source
    frame_size: tuple[int, int]
    voices: tuple[audio.Wave, ...]

    @property
    def seconds(self) -> float:
        """How long the recordings last."""
        return len(self.voices[0]) / audio.SAMPLE_RATE


def read_inputs(params: GenerationParams) -> Inputs:
    """Open what a request names; no network is needed, so mistakes show before weights are loaded.

    Raises:
        MediaError: a file is missing or cannot be used.
    """
    source = open_source(local_file(params.image_path))
    size = params.forced_size or nearest_size(*source.size, params.resolution)
    voices: tuple[audio.Wave, ...] = (audio.read_speech(local_file(params.audio_path)),)
    if params.second_audio_path is not None:
        second = audio.read_speech(local_file(params.second_audio_path))
        voices = audio.mix_speakers(voices[0], second, params.audio_mix)
    return Inputs(source, size, voices)


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
    source: Source
    frame_size: tuple[int, int]


@dataclass(frozen=True)
class GeneratedChunk:
    """One sampled chunk: its latent [C, T, h, w] and all its frames [3, F, H, W] in [−1, 1], on the CPU."""

    chunk: Chunk
    latent: Tensor
    frames: Tensor

    @property
    def new_frames(self) -> Tensor:
        """The frames that this chunk adds to the video."""
        return self.frames[:, self.chunk.repeated : self.chunk.repeated + self.chunk.new]


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
            return recovering(
                lambda: cls._load(params, device, budget), device, lambda: _planned_for(params), budget
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

    def use(self, network: nn.Module, need: Need | None = None) -> AbstractContextManager[object]:
        """Have a network on the device for a while; without its `need`, streamed blocks stay on the host."""
        return nullcontext() if self.budget is None else visit(network, self.device, self.budget, need)

    def encode(
        self, inputs: Inputs, params: GenerationParams, stage: Stage = no_stage, cache: Remember = no_cache
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
            return recovering(encode, self.device, lambda: plan, self.budget)

    def _encode(
        self, inputs: Inputs, params: GenerationParams, plan: Requirements, stage: Stage, cache: Remember
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

    def _read(self, texts: tuple[str, ...], need: Need) -> tuple[Tensor, ...]:
        assert self.text_encoder and self.tokenizer
        with self.use(self.text_encoder, need):
            return tuple(self.text_encoder.encode(texts, self.tokenizer))

    def _hear(self, wave: Tensor, cache: Remember) -> Tensor:
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


def _planned_for(params: GenerationParams) -> Requirements:
    inputs = read_inputs(params)
    return planned(params, inputs.frame_size, inputs.seconds)


def _type(network: nn.Module) -> str:
    """The type that a network computes in."""
    return str(next(network.parameters()).dtype)


@dataclass
class EncodedPicture:
    """What the transformer sees of a chunk's first frame: its features, and its latent behind a mask."""

    pixels: Tensor
    frames: int
    context: Context
    condition: Tensor
    motion: Tensor


class ChunkGenerator:
    """Generates the chunks of one request; what does not change between them is computed once and kept."""

    def __init__(
        self, pipeline: Pipeline, conditions: Conditions, params: GenerationParams,
        stage: Stage = no_stage, cache: Remember = no_cache,
    ):  # fmt: skip
        self.networks, self.conditions, self.params = pipeline, conditions, params
        self.stage, self.cache = stage, cache
        self.width, self.height = conditions.frame_size
        seconds = len(conditions.audio[0]) / FRAMES_PER_SECOND
        self.plan = pipeline.requirements(params, conditions.frame_size, seconds)
        self.colors = to_unit_range(self._fit(0.0)).to(pipeline.device)
        self.regions = self._speaker_regions()
        # Keys and values take memory in proportion to the blocks: with a budget they are computed again.
        self.precompute = pipeline.budget is None
        self.texts: dict[bool, Context] = {}
        self.picture: EncodedPicture | None = None

    def chunks(self) -> list[Chunk]:
        """The chunks that the request needs: as long as its recording, or `max_frames`."""
        params, frames = self.params, len(self.conditions.audio[0])
        frames = min(frames, params.max_frames or frames)
        return plan_chunks(frames, params.chunk_frames, params.motion_frame, params.trim_last_chunk)

    def generate(
        self,
        chunk: Chunk,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> GeneratedChunk:
        """Sample and decode one chunk.

        Args:
            chunk: one of `chunks()`.
            previous: frames of the chunk before, [3, ≥ motion_frame, H, W]; its last ones are repeated. All
                chunks but the first need it.
            noise: [C, T, h, w], instead of what the seed gives.
            on_step: called with the number of finished steps; what it raises ends the sampling.

        Raises:
            OutOfMemory: with the plan's numbers; the device is left as it was before.
            CheckpointError: the frames are no numbers.
        """
        try:
            with torch.inference_mode():
                return recovering(
                    lambda: self._generate(chunk, previous, noise, on_step),
                    self.networks.device,
                    lambda: self.plan,
                    self.networks.budget,
                )
        except OutOfMemory:
            self.texts, self.picture = {}, None
            give_back(self.networks.device)
            raise

    def _generate(
        self, chunk: Chunk, previous: Tensor | None, noise: Tensor | None, on_step: Callable[[int], None]
    ) -> GeneratedChunk:
        networks, grid = self.networks, LatentGrid(chunk.frames, self.height, self.width)
        self.picture = self._encode_picture(self._fit(chunk.seconds), chunk.frames)
        motion = self.picture.motion
        if chunk.repeated:
            assert previous is not None, "a chunk after the first continues the frames of the one before"
            with self.stage("vae_encode"), networks.use(networks.vae):
                motion = networks.vae.encode(previous[None, :, -chunk.repeated :].to(networks.device))
        if noise is None:
            noise = chunk_noise(self.params.seed, chunk.index, grid.latent_shape(networks.vae.config.z_dim))
        with self.stage("sampling"), networks.use(networks.dit, self.plan.needs["sampling"]):
            fixed = self._chunk_conditions(chunk, grid, motion)
            latent = sample_chunk(networks.dit, noise[None].to(networks.device), fixed, self.params, on_step)
            del fixed
        with self.stage("decode"), networks.use(networks.vae):
            frames = decode_chunk(networks.vae, latent, self._match_colors)
        if previous is not None and self.params.seam_frames:
            frames = ease_seam(frames, previous, chunk.repeated, self.params.seam_frames)
        return GeneratedChunk(chunk, latent[0].cpu(), frames)

    def _match_colors(self, frames: Tensor) -> Tensor:
        if not self.params.use_color_correction:
            return frames
        return match_colors(frames, self.colors, self.params.color_correction_strength)

    def _fit(self, seconds: float) -> Tensor:
        return fit(self.conditions.source.frame_at(seconds), self.width, self.height)

    def _speaker_regions(self) -> Tensor | None:
        if len(self.conditions.audio) == 1:
            return None
        masks = speaker_masks(
            self.conditions.source.size, self.params.speaker_boxes, self.conditions.frame_size
        )
        return token_regions(masks, self.networks.dit.config.patch_size).to(self.networks.device)

    def _encode_picture(self, pixels: Tensor, frames: int) -> EncodedPicture:
        known = self.picture
        if known is not None and known.frames >= frames and torch.equal(known.pixels, pixels):
            return known
        networks = self.networks
        picture = to_unit_range(pixels)[None].to(networks.device)
        with self.stage("image"):
            key = [picture, _type(networks.image_encoder)]
            (features,) = self.cache("image", key, lambda: (networks.see(picture),))
            with networks.use(networks.dit):
                context = networks.dit.image_context(features.to(networks.device), self.precompute)
        with self.stage("vae_encode"), networks.use(networks.vae):
            key = [picture, frames, _type(networks.vae)]
            encode = networks.vae.encode_first_frame_then_zeros
            (encoded,) = self.cache("portrait", key, lambda: (encode(picture, frames),))
            encoded = encoded.to(networks.device)
        # One channel for each video frame of a latent frame: 1 where it is given.
        mask = encoded.new_zeros(1, FRAMES_PER_LATENT, *encoded.shape[2:])
        mask[:, :, 0] = 1
        # The autoencoder looks only backwards, so the first latent frame is that of the picture alone.
        condition, motion = torch.cat([mask, encoded], dim=1), encoded[:, :, :1]
        return EncodedPicture(pixels, frames, context, condition, motion)

    def _chunk_conditions(self, chunk: Chunk, grid: LatentGrid, motion: Tensor) -> ChunkConditions:
        assert self.picture is not None
        dit, device, keep = self.networks.dit, self.networks.device, self.precompute
        if not self.texts:
            texts = {True: self.conditions.prompt, False: self.conditions.negative_prompt}
            self.texts = {prompt: dit.text_context([text], keep) for prompt, text in texts.items()}
        voices = [audio_windows(voice, chunk, dit.config.audio_window) for voice in self.conditions.audio]
        heard = torch.stack(voices)[None].to(device)
        silence = torch.zeros_like(heard[:, :1])
        return ChunkConditions(
            picture=self.picture.condition[:, :, : grid.latent_frames],  # it may be a longer chunk's
            image=self.picture.context,
            texts=self.texts,
            # Silence is one speaker's, also where two are heard, as the model was trained.
            audios={True: dit.audio_context(heard, keep), False: dit.audio_context(silence, keep)},
            motion=motion,
            rotation=dit.rotation(grid.latent_shape(1), device),
            regions=self.regions,
        )
