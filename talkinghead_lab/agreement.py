"""Which fields of a request contradict each other."""

from talkinghead_lab.foundation.field_errors import Contradiction
from talkinghead_lab.foundation.latent_grid import largest_size
from talkinghead_lab.request_fields import RELEASED_ONLY, RequestFields
from talkinghead_lab.sampling.config import guided_steps

SEVERAL_PEOPLE = ("second_audio_path", "speaker_boxes", "speaker_masks", "segments")  # each may tell of two


def check_agreement(request: RequestFields) -> None:
    """Check fields against each other, each of which is valid by itself.

    Raises:
        Contradiction: two of them do not go together; it names the one to change.
    """
    for check in (_frames, _weights, _sound, _speakers, _picture, _guidance, _solver, _loras, _step_cache):
        check(request)


def _frames(request: RequestFields) -> None:
    if request.forced_size:
        width, height = request.forced_size
        largest = largest_size(width, height, request.chunk_frames)
        if width > largest[0] or height > largest[1]:
            message = (
                f"frame_size {request.frame_size} is too large with chunk_frames {request.chunk_frames}; "
                f"allowed: up to {largest[0]}x{largest[1]} in this shape"
            )
            raise Contradiction(message, "frame_size")
    if request.motion_frame >= request.chunk_frames:
        limit = f"must be smaller than chunk_frames {request.chunk_frames}"
        raise Contradiction(f"motion_frame {request.motion_frame} {limit}", "motion_frame")


def _weights(request: RequestFields) -> None:
    named = [name for name in RELEASED_ONLY if getattr(request, name)]
    if request.checkpoint == "embedded" and named:
        message = f"{named[0]} names weights, but checkpoint is embedded: the bundled model has its own"
        raise Contradiction(message, "checkpoint")


def _speakers(request: RequestFields) -> None:
    if request.speaker_boxes and request.speaker_masks:
        raise Contradiction(
            "speaker_boxes and speaker_masks both draw the speakers: use one", "speaker_masks"
        )
    boxes = request.speaker_boxes
    if boxes and request.voices == 2 and len(boxes) != 2:
        message = f"speaker_boxes needs one box per recording: 2, and has {len(boxes)}"
        raise Contradiction(message, "speaker_boxes")


def _sound(request: RequestFields) -> None:
    if request.segments:
        if request.audio_mix != "timeline":
            raise Contradiction("segments require audio_mix: timeline", "audio_mix")
        others = ("audio_path", "second_audio_path", "audio_track", "audio_start")
        if given := [name for name in others if getattr(request, name)]:
            raise Contradiction(f"segments name their own files: leave out {given[0]}", given[0])
    elif request.audio_mix == "timeline":
        raise Contradiction("audio_mix timeline requires segments", "segments")
    elif request.audio_path is None:
        raise Contradiction("`audio_path` is missing: set it, or segments of a dialogue", "audio_path")
    if request.speaker_loudness and len(request.speaker_loudness) != request.voices:
        message = (
            f"speaker_loudness has {len(request.speaker_loudness)} values, and {request.voices} "
            f"{'speaks' if request.voices == 1 else 'speak'}: give one for each"
        )
        raise Contradiction(message, "speaker_loudness")


def _picture(request: RequestFields) -> None:
    if request.lips_only and request.speakers > 1 and not request.lips_mask:
        several = next(name for name in SEVERAL_PEOPLE if getattr(request, name))
        message = f"lips_only follows one face, and {several} is set: leave one out, or give lips_mask"
        raise Contradiction(message, "lips_only")
    if request.lips_mask and not request.lips_only:
        raise Contradiction("lips_mask requires lips_only: true", "lips_only")
    kept_fields = {"lips_only": request.lips_only, "denoise_strength": request.denoise_strength < 1}
    for name, kept in kept_fields.items():
        if request.continue_video and kept:
            message = f"{name} keeps frames of image_path, continue_video goes on from another: leave one out"
            raise Contradiction(message, name)
    for name in ("speaker_boxes", "speaker_masks", "lips_mask"):
        if getattr(request, name) and len(request.pictures) > 1:
            message = f"{name} is drawn on one picture, and image_path lists several: leave one out"
            raise Contradiction(message, name)
    if request.pad is not None and request.crop != "none":
        raise Contradiction("pad requires crop none; otherwise the picture fills the frame", "pad")
    if request.crop == "face" and request.speakers > 1:
        raise Contradiction("crop face follows one face; for several people, choose another crop", "crop")


def _guidance(request: RequestFields) -> None:
    steps = request.diffusion_steps
    for name in ("text_guide_scale", "audio_guide_scale"):
        scale = getattr(request, name)
        if isinstance(scale, tuple) and len(scale) > steps:
            message = f"{name} has {len(scale)} values, but there are {steps} diffusion_steps"
            raise Contradiction(message, name)
    if request.guidance_interval and not guided_steps(request.guidance_interval, steps):
        message = (
            f"guidance_interval {list(request.guidance_interval)} holds none of the {steps} steps: widen it, "
            "or set both guidance scales to 1.0"
        )
        raise Contradiction(message, "guidance_interval")
    if request.cfg_zero_star and request.use_apg:
        raise Contradiction("cfg_zero_star and use_apg both change the guidance: use one", "cfg_zero_star")
    if request.zero_init_steps and not request.cfg_zero_star:
        raise Contradiction("zero_init_steps requires cfg_zero_star: true", "zero_init_steps")
    if request.zero_init_steps >= steps:
        message = f"zero_init_steps {request.zero_init_steps} leaves none of the {steps} diffusion_steps"
        raise Contradiction(message, "zero_init_steps")


def _loras(request: RequestFields) -> None:
    for lora in request.loras:
        if isinstance(lora.scale, tuple) and len(lora.scale) > request.diffusion_steps:
            message = (
                f"loras has a scale of {len(lora.scale)} values, but there are {request.diffusion_steps} "
                "diffusion_steps"
            )
            raise Contradiction(message, "loras")


def _step_cache(request: RequestFields) -> None:
    if request.step_cache_threshold is None:
        for name, given in {
            "step_cache: first_block": request.step_cache == "first_block",
            "max_consecutive_skips": request.max_consecutive_skips is not None,
        }.items():
            if given:
                raise Contradiction(f"{name} requires a step_cache_threshold", "step_cache_threshold")
    elif request.step_cache == "released" and any(isinstance(lora.scale, tuple) for lora in request.loras):
        message = (
            "step_cache released estimates from the timesteps, which do not tell how a LoRA of changing "
            "strength changes the video: use first_block, or one number as scale"
        )
        raise Contradiction(message, "step_cache")
    elif request.sampler == "lcm":
        message = (
            "step_cache_threshold reuses results of the step before, but lcm draws new noise in every step"
        )
        raise Contradiction(message, "step_cache_threshold")


def _solver(request: RequestFields) -> None:
    steps = request.diffusion_steps
    if request.sigmas and len(request.sigmas) != steps:
        message = f"diffusion_steps is {steps}, but sigmas has {len(request.sigmas)} levels: leave it out"
        raise Contradiction(message, "diffusion_steps")
    if request.sigmas and request.denoise_strength < 1:
        message = "denoise_strength shortens the shifted schedule, which sigmas replace: leave one out"
        raise Contradiction(message, "denoise_strength")
