"""The shots of a request after the first: each a picture or video of its own from a time on."""

from collections.abc import Callable, Sequence

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, first_frame
from talkinghead_lab.media.frame_size import Size
from talkinghead_lab.media.inputs import Inputs, Shot, warnings_of
from talkinghead_lab.media.reference import ReferenceMedia
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import framed

Opener = Callable[[str], ReferenceMedia]


def later_shots(
    request: GenerationParams, opened: Opener, size: Size
) -> tuple[tuple[Shot, ...], tuple[str, ...]]:
    """The shots after the first, in frames of (W, H), and what the user should know about their pictures.

    Args:
        request: names the pictures.
        opened: opens the file of a field.
        size: of the frames.

    Raises:
        MediaError, InvalidRequest: as `frame_picture`.
    """
    shots, warnings = [], []
    for number, picture in enumerate(request.pictures[1:], start=1):
        reference = opened(f"image_path.{number}")
        found = framed(request, reference, size)
        shots.append(Shot(reference, found.framing, first_frame(picture.start)))
        warnings += [
            f"Shot from {picture.start:g} s on: {warning}"
            for warning in (*warnings_of(reference), *found.warnings)
        ]
    return tuple(shots), tuple(warnings)


def check_needs_no_video(request: GenerationParams) -> None:
    """Refuse for a portrait what is done to driving videos."""
    wanted = {
        "denoise_strength": request.denoise_strength < 1 and "restyles a driving video",
        "lips_only": request.lips_only and "keeps a driving video",
        "scene_cuts": request.scene_cuts and "follows the scenes of a driving video",
    }
    for field, does in wanted.items():
        if does:
            raise InvalidRequest(
                f"{field} {does}, and image_path is a single picture",
                received=getattr(request, field),
                remedy=f"Set image_path to a video, or leave {field} out.",
                field=field,
            )


def unused_parts(
    request: GenerationParams, inputs: Inputs, frames: int, prompt_starts: Sequence[float | None]
) -> tuple[str, ...]:
    """Warn of shots after the end of the video, and of prompts that no chunk has.

    Args:
        request: names the prompts.
        inputs: has the shots.
        frames: of the video.
        prompt_starts: when each prompt takes effect; None: never.
    """
    end = frames / FRAMES_PER_SECOND
    shots = [shot.start / FRAMES_PER_SECOND for shot in inputs.later if shot.start >= frames]
    unused = [p.start for p, start in zip(request.prompts, prompt_starts, strict=True) if start is None]
    return (
        *(f"The shot from {start:g} s on is not seen: the video ends at {end:g} s." for start in shots),
        *(
            f"The prompt from {start:g} s on is not used: no chunk begins between it and the next prompt or "
            "the end. A chunk has the prompt of its first new frame; shorter chunks begin more often."
            for start in unused
        ),
    )
