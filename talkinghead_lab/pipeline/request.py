"""Decides, once per run, every setting that depends on the request, its media and the machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from talkinghead_lab.foundation.devices import GIB, compute_type, decode_type, pick_device
from talkinghead_lab.foundation.digests import FileState
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, LatentGrid, first_frame
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_size import CENTER, Box, Framing, place
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.media.reference import Portrait
from talkinghead_lab.models.kernels.attention import choose_attention
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request_media import video_frames
from talkinghead_lab.pipeline.shots import check_needs_no_video, unused_parts
from talkinghead_lab.request_fields import RELEASED_ONLY, WEIGHT_FOLDERS
from talkinghead_lab.sampling.chunks import Chunk, plan_chunks
from talkinghead_lab.sampling.config import ProjectionConfig, SamplingConfig, StepCacheConfig
from talkinghead_lab.sampling.guidance import planned_passes
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS, schedule_of
from talkinghead_lab.sampling.solvers import check_solver
from talkinghead_lab.sampling.step_cache import COEFFICIENTS, skippable_passes
from talkinghead_lab.weights.checkpoints import stored_types, transformer_width
from talkinghead_lab.weights.digests import weight_states
from talkinghead_lab.weights.load_settings import LoadSettings, LoraFile
from talkinghead_lab.weights.locating import CheckpointFiles, locate
from talkinghead_lab.weights.quantization import allows_fp8_matmuls, check_stored, stored_type

# Requests that agree in these fields share their networks.
NETWORK_FIELDS = (
    *("checkpoint", *WEIGHT_FOLDERS, *RELEASED_ONLY, "speakers", "loras", "precision"),
    *("attention", "compile_blocks", "device", "vram_budget_gib"),
)
# Compiling takes up to half a minute; a whole run of a narrower network takes less.
NARROWEST_COMPILED = 1024
ABSENT_CHECKPOINT = CheckpointFiles()


@dataclass(frozen=True)
class Resolved:
    """A request, and every setting that depends on the machine, the media or the checkpoint.

    Decided once per run; nothing below decides again. `to_json` is the run's record of it.

    Args:
        request: what was asked for.
        networks: how the networks are loaded.
        sampling: steps, noise schedule, guidance, step cache.
        frame_size: (W, H) of the frames.
        seconds: length of the recordings.
        frames: of the video.
        budget: device memory to stay within, in bytes; None: all weights stay on the device.
        warnings: what the user should know before anything is generated, one sentence or more each.
        framing: how the picture is brought into the frame.
        kept: [left, top, right, bottom] of the picture's part in the frame, in its pixels; None: not known.
        cuts: numbers of the frames at which a new shot begins.
    """

    request: GenerationParams
    networks: LoadSettings
    sampling: SamplingConfig
    frame_size: tuple[int, int]
    seconds: float
    frames: int
    budget: int | None
    warnings: tuple[str, ...] = ()
    framing: Framing = CENTER
    kept: Box | None = None
    cuts: tuple[int, ...] = ()

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks that make up the video."""
        return chunks_of(self.request, self.frames, self.cuts)

    def prompt_of(self, chunk: Chunk) -> int:
        """The number of a chunk's prompt: that which applies at the first frame that the chunk adds."""
        starts = [first_frame(prompt.start) for prompt in self.request.prompts]
        return max(number for number, start in enumerate(starts) if start <= chunk.first_new)

    @property
    def prompt_starts(self) -> list[float | None]:
        """When each prompt takes effect, in seconds of the video; None: no chunk has it."""
        starts = {self.prompt_of(chunk): chunk.first_new for chunk in reversed(self.chunks)}
        numbers = range(len(self.request.prompts))
        return [starts[number] / FRAMES_PER_SECOND if number in starts else None for number in numbers]

    @property
    def forward_passes(self) -> int:
        """Planned forward passes of the whole video; a step cache may skip some of them."""
        return len(self.chunks) * sum(planned_passes(self.sampling))

    @property
    def skippable_passes(self) -> int:
        """The most forward passes of the whole video that the step cache may skip."""
        return len(self.chunks) * skippable_passes(self.sampling)

    @property
    def grid(self) -> LatentGrid:
        """The sizes of one full chunk."""
        width, height = self.frame_size
        return LatentGrid(self.request.chunk_frames, height, width)

    def to_json(self) -> dict[str, Any]:
        """Plain values.

        `stored` counts the tensors of the transformer's files by type; `storage_type` is what plain linear
        layers among them are quantised to while loading.
        """
        networks = self.networks
        by_step = map(self.sampling.lora_scales_at, range(self.sampling.steps))
        return {
            "frame_size": "{}x{}".format(*self.frame_size),
            "crop": None if self.kept is None else list(self.kept),
            "frames": self.frames,
            "chunks": len(self.chunks),
            "shots": [start / FRAMES_PER_SECOND for start in (0, *self.cuts)],
            "prompts": self.prompt_starts,
            "seconds": self.seconds,
            "sample_shift": None if self.sampling.sigmas else self.sampling.shift,
            "sigmas": [round(time / TRAINED_TIMESTEPS, 6) for time in schedule_of(self.sampling).tolist()],
            "forward_passes": self.forward_passes,
            "skippable_passes": self.skippable_passes,
            "lora_strengths": [list(each) for each in zip(*by_step, strict=True)],
            "guided_by_text": self.sampling.text_is_guided,
            "guided_by_audio": self.sampling.audio_is_guided,
            "device": str(networks.device),
            "compute_type": _name(networks.compute),
            "stored": dict(networks.stored),
            "storage_type": _name(networks.storage),
            "decode_type": _name(networks.decode),
            "attention": networks.attention,
            "compiled": networks.compiled,
            "offloaded": networks.offloaded,
            "vram_budget_gib": None if self.budget is None else self.budget / GIB,
            "warnings": list(self.warnings),
        }


def chunks_of(request: GenerationParams, frames: int, cuts: Sequence[int]) -> list[Chunk]:
    """The chunks of a request's video of so many frames, with new shots at `cuts`."""
    return plan_chunks(
        frames,
        request.chunk_frames,
        request.motion_frame,
        request.trim_last_chunk,
        cuts,
        continues=request.continue_video is not None,
    )


def resolve(request: GenerationParams, inputs: Inputs, networks: LoadSettings | None = None) -> Resolved:
    """Decide every setting of a run.

    Args:
        request: what was asked for.
        inputs: its media.
        networks: how the networks are loaded; unset: from the checkpoint of the request.

    Raises:
        InvalidRequest: the device, or the attention kernel on it, is not available; `precision` asks to
            quantise weights that are stored quantised in another type; or a picture is to be restyled.
        CheckpointError: the checkpoint is missing, or of a kind that cannot be used.
        MissingExtra: the sampler is not installed.
    """
    check_solver(request.sampler)
    if any(isinstance(shot.reference, Portrait) for shot in inputs.shots):
        check_needs_no_video(request)
    frames = video_frames(request, inputs)
    resolved = Resolved(
        request=request,
        networks=networks or load_settings(request),
        sampling=sampling_config(request),
        frame_size=inputs.frame_size,
        seconds=inputs.seconds,
        frames=frames,
        budget=memory_budget(request),
        warnings=inputs.warnings,
        framing=inputs.framing,
        kept=place(inputs.reference.size, inputs.frame_size, inputs.framing).kept,
        cuts=tuple(shot.start for shot in inputs.later if shot.start < frames),
    )
    return replace(
        resolved, warnings=inputs.warnings + unused_parts(request, inputs, frames, resolved.prompt_starts)
    )


def load_settings(request: GenerationParams) -> LoadSettings:
    """Decide how the networks of a request are loaded on this machine; errors as for `resolve`."""
    files = checkpoint_files(request)
    stored = stored_types(files)
    check_stored(request.precision, stored)
    settings = settings_without_weights(request, files)
    return replace(settings, loras=lora_files(request), stored=stored, weights=weight_states(files))


def settings_without_weights(
    request: GenerationParams, files: CheckpointFiles = ABSENT_CHECKPOINT
) -> LoadSettings:
    """How networks would be loaded on this machine, as far as no weights are needed to tell.

    Args:
        request: what is asked for.
        files: the checkpoint; without one, the networks have the released sizes.

    Raises:
        InvalidRequest: the device, or the attention kernel on it, is not available.
    """
    device = pick_device(request.device)
    compute = compute_type(request.precision, device)
    return LoadSettings(
        files=files,
        loras=(),
        device=device,
        compute=compute,
        storage=stored_type(request.precision, device),
        fp8_matmuls=allows_fp8_matmuls(request.precision, device),
        decode=decode_type(compute, device),
        attention=choose_attention(request.attention, device),
        compiled=_is_compiled(request, files, device),
        offloaded=request.vram_budget_gib is not None,
    )


def lora_files(request: GenerationParams) -> tuple[LoraFile, ...]:
    """The LoRAs of a request, with the present states of their files."""
    paths = [local_file(lora.path) for lora in request.loras]
    return tuple(
        LoraFile(path, None if isinstance(lora.scale, tuple) else lora.scale, FileState.of(path))
        for path, lora in zip(paths, request.loras, strict=True)
    )


def memory_budget(request: GenerationParams) -> int | None:
    """Device memory that a request stays within, in bytes; None: all weights stay on the device."""
    gib = request.vram_budget_gib
    return None if gib is None else round(gib * GIB)


def checkpoint_files(request: GenerationParams) -> CheckpointFiles:
    """Find the checkpoint of a request.

    Raises:
        CheckpointError: it is not named anywhere, or does not exist.
    """
    return locate(request.checkpoint, request.speakers, request.weight_sources)


def sampling_config(request: GenerationParams) -> SamplingConfig:
    """The part of a request that sampling needs."""
    return SamplingConfig(
        steps=request.diffusion_steps,
        shift=request.shift,
        text_scale=request.text_guide_scale,
        audio_scale=request.audio_guide_scale,
        guidance_interval=request.guidance_interval or (0.0, 1.0),
        sampler=request.sampler,
        sigmas=request.sigmas,
        strength=request.denoise_strength,
        zero_star=request.cfg_zero_star,
        zero_init_steps=request.zero_init_steps,
        projection=(
            ProjectionConfig(request.apg_momentum, request.apg_norm_threshold) if request.use_apg else None
        ),
        step_cache=_step_cache(request),
        lora_scales=tuple(lora.scale for lora in request.loras if isinstance(lora.scale, tuple)),
    )


def _step_cache(request: GenerationParams) -> StepCacheConfig | None:
    if request.step_cache_threshold is None:
        return None
    coefficients = COEFFICIENTS[request.resolution] if request.step_cache == "released" else None
    return StepCacheConfig(request.step_cache_threshold, coefficients, request.max_consecutive_skips)


def _is_compiled(request: GenerationParams, files: CheckpointFiles, device: torch.device) -> bool:
    if request.compile_blocks is not None:
        return request.compile_blocks
    if device.type != "cuda":
        return False
    width = None if files.is_absent else transformer_width(files)
    return (width or NARROWEST_COMPILED) >= NARROWEST_COMPILED


def _name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
