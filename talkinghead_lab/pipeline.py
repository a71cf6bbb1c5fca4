"""The networks put together: a request is encoded once, then generated chunk by chunk."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from talkinghead_lab import audio, checkpoints
from talkinghead_lab.encoder_cache import Remember, no_cache
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.image import fit, match_colors, nearest_size, speaker_masks
from talkinghead_lab.latent_grid import FRAMES_PER_LATENT, LatentGrid
from talkinghead_lab.lora import merge_lora
from talkinghead_lab.models.dit import Context, DiT, token_regions
from talkinghead_lab.models.image_encoder import ImageEncoder
from talkinghead_lab.models.speech_encoder import SpeechEncoder
from talkinghead_lab.models.text_encoder import TextEncoder, Tokenizer
from talkinghead_lab.models.vae import VAE
from talkinghead_lab.params import GenerationParams, local_file
from talkinghead_lab.quantization import quantize_linears
from talkinghead_lab.sampling import ChunkConditions, sample_chunk
from talkinghead_lab.source import Source, open_source
from talkinghead_lab.streaming import Chunk, audio_windows, plan_chunks

STORED_TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}

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

    The encoders of text and speech may be absent where their results are given as `Conditions`.
    """

    dit: DiT
    vae: VAE
    image_encoder: ImageEncoder
    text_encoder: TextEncoder | None = None
    tokenizer: Tokenizer | None = None
    speech_encoder: SpeechEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def load(cls, params: GenerationParams) -> "Pipeline":
        """Read the checkpoint that a request names, with its LoRAs and in its precision.

        Raises:
            InvalidRequest: the device is not there.
            CheckpointError: see `checkpoints` and `lora`.
        """
        device = pick_device(params.device)
        compute = compute_type(params.precision, device)
        files = checkpoints.locate(params)
        dit = checkpoints.load_dit(files, compute, device)
        for lora in params.loras:
            merge_lora(dit, local_file(lora.path), lora.scale)
        if params.precision in STORED_TYPES and checkpoints.quantization_map(files.infinitetalk) is None:
            quantize_linears(dit.get_submodule("blocks"), STORED_TYPES[params.precision])
        return cls(
            dit=dit,
            vae=checkpoints.load_vae(files, torch.float32, device),
            image_encoder=checkpoints.load_image_encoder(files, compute, device),
            text_encoder=checkpoints.load_text_encoder(files, compute, device),
            tokenizer=checkpoints.load_tokenizer(files, dit.config.text_len),
            speech_encoder=checkpoints.load_speech_encoder(files, torch.float32, device),
            device=device,
        )

    @torch.inference_mode()
    def encode(
        self, inputs: Inputs, params: GenerationParams, stage: Stage = no_stage, cache: Remember = no_cache
    ) -> Conditions:
        """Encode the texts and recordings of a request."""
        text, tokenizer, speech = self.text_encoder, self.tokenizer, self.speech_encoder
        assert text and tokenizer and speech, "needs the encoders"
        texts = [params.prompt, params.negative_prompt]
        with stage("text"):
            prompt, negative = cache(
                "text", [*texts, _type(text)], lambda: tuple(text.encode(texts, tokenizer))
            )
        with stage("audio"):
            heard = tuple(self._hear(speech, torch.from_numpy(voice), cache) for voice in inputs.voices)
        prompt, negative = prompt.to(self.device), negative.to(self.device)
        return Conditions(prompt, negative, heard, inputs.source, inputs.frame_size)

    def _hear(self, encoder: SpeechEncoder, wave: Tensor, cache: Remember) -> Tensor:
        frames = audio.frame_count(wave.numpy())
        (heard,) = cache(
            "audio", [wave, _type(encoder)], lambda: (encoder(wave.to(self.device), frames).cpu(),)
        )
        return heard

    def see(self, picture: Tensor) -> Tensor:
        """The image encoder's features of [1, 3, H, W] in [−1, 1]: [1, tokens, channels]."""
        return self.image_encoder(picture.to(self.device))


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
        with torch.inference_mode():
            texts = {True: conditions.prompt, False: conditions.negative_prompt}
            self.texts = {prompt: pipeline.dit.text_context([text]) for prompt, text in texts.items()}
            self.colors = to_unit_range(self._fit(0.0)).to(pipeline.device)
        self.regions = self._speaker_regions()
        self.picture: EncodedPicture | None = None

    def chunks(self) -> list[Chunk]:
        """The chunks that the request needs: as long as its recording, or `max_frames`."""
        frames = len(self.conditions.audio[0])
        frames = min(frames, self.params.max_frames or frames)
        return plan_chunks(frames, self.params.chunk_frames, self.params.motion_frame)

    @torch.inference_mode()
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
        """
        networks, grid = self.networks, LatentGrid(chunk.frames, self.height, self.width)
        self.picture = self._encode_picture(self._fit(chunk.seconds), chunk.frames)
        motion = self.picture.motion
        if chunk.repeated:
            assert previous is not None, "a chunk after the first continues the frames of the one before"
            with self.stage("vae_encode"):
                motion = networks.vae.encode(previous[None, :, -chunk.repeated :].to(networks.device))
        if noise is None:
            noise = chunk_noise(self.params.seed, chunk.index, grid.latent_shape(networks.vae.config.z_dim))
        with self.stage("sampling"):
            fixed = self._chunk_conditions(chunk, grid, motion)
            latent = sample_chunk(networks.dit, noise[None].to(networks.device), fixed, self.params, on_step)
        with self.stage("decode"):
            frames = networks.vae.decode(latent)[0]
            if self.params.use_color_correction:
                frames = match_colors(frames, self.colors, self.params.color_correction_strength)
        return GeneratedChunk(chunk, latent[0].cpu(), frames.cpu())

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
        if known is not None and known.frames == frames and torch.equal(known.pixels, pixels):
            return known
        networks = self.networks
        picture = to_unit_range(pixels)[None].to(networks.device)
        with self.stage("image"):
            key = [picture, _type(networks.image_encoder)]
            (features,) = self.cache("image", key, lambda: (networks.image_encoder(picture),))
            context = networks.dit.image_context(features.to(networks.device))
        with self.stage("vae_encode"):
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
        dit, device = self.networks.dit, self.networks.device
        voices = [audio_windows(voice, chunk, dit.config.audio_window) for voice in self.conditions.audio]
        heard = torch.stack(voices)[None].to(device)
        return ChunkConditions(
            picture=self.picture.condition,
            image=self.picture.context,
            texts=self.texts,
            # Silence is one speaker's, also where two are heard, as the model was trained.
            audios={True: dit.audio_context(heard), False: dit.audio_context(torch.zeros_like(heard[:, :1]))},
            motion=motion,
            rotation=dit.rotation(grid.latent_shape(1), device),
            regions=self.regions,
        )


def pick_device(name: str) -> torch.device:
    """The device that a request names; `auto` is the first GPU, or the CPU.

    Raises:
        InvalidRequest: there is no such GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InvalidRequest(
            "no such GPU",
            received=name,
            allowed=f"{count} GPUs are visible",
            remedy="Use device auto or cpu.",
        )
    return device


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """The type that the transformer computes in: as asked, else bf16 on a GPU and fp32 on a CPU."""
    if precision in ("fp32", "bf16"):
        return torch.float32 if precision == "fp32" else torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def chunk_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one chunk, float32, drawn on the CPU so that it is the same for every device.

    Seed and chunk number are hashed together: each chunk can be made again alone.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1
