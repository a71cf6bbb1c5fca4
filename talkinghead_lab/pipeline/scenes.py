"""Where the scenes of a driving video change, by PySceneDetect: a new shot begins there."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from talkinghead_lab.errors import MissingExtra
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.frame_size import CENTER, Size
from talkinghead_lab.media.inputs import CopiedVideo, Shot
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import framed

if TYPE_CHECKING:
    from scenedetect import ContentDetector

SEARCHED_SIZE = (160, 160)  # pixels, of the centre of each frame
FRAMES_AT_ONCE = 100
SHORTEST_SCENE = 15  # frames; as PySceneDetect has it. Of cuts closer together, the first counts
SECONDS_WITHOUT_BAR = 2


def content_detector() -> "ContentDetector":
    """PySceneDetect's detector of cuts, with its own threshold.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from scenedetect import ContentDetector
    except ImportError:
        raise MissingExtra(
            "scene_cuts needs PySceneDetect, which is not installed",
            remedy="Install the extra: pip install 'talkinghead_lab[scenes]'",
        ) from None
    from scenedetect.scene_detector import FlashFilter

    return ContentDetector(min_scene_len=SHORTEST_SCENE, filter_mode=FlashFilter.Mode.SUPPRESS)


def scene_cuts(video: CopiedVideo, count: int, offset: float = 0.0) -> list[int]:
    """The numbers of those of `count` frames, 1/25 s apart from `offset` seconds on, that begin a new scene.

    Raises:
        MissingExtra: PySceneDetect is not installed.
        MediaError: the video cannot be decoded.
    """
    detector, cuts, number = content_detector(), [], 0
    with tqdm(
        total=count,
        desc="finding scene cuts",
        unit="frame",
        delay=SECONDS_WITHOUT_BAR,
        leave=False,
        disable=None,
    ) as bar:
        while number < count:
            at_once = min(FRAMES_AT_ONCE, count - number)
            start = offset + number / FRAMES_PER_SECOND
            frames = video.fitted_frames(start, at_once, SEARCHED_SIZE, CENTER)
            for frame in frames.permute(0, 2, 3, 1).flip(-1).contiguous():  # RGB to BGR
                cuts += detector.process_frame(number, frame.numpy())
                number += 1
            bar.update(at_once)
    return sorted({*cuts, *detector.post_process(number)} - {0})


def split_at_cuts(
    request: GenerationParams, shots: tuple[Shot, ...], frames: int, size: Size
) -> tuple[Shot, ...]:
    """Shots of frames of (W, H), each driving video among them split where its scenes change.

    Args:
        request: says how pictures are framed.
        shots: all shots of the video, in order.
        frames: of the video; what begins later is not looked at.
        size: of the frames.

    Raises:
        MissingExtra, MediaError, InvalidRequest: see `scene_cuts` and `framed`.
    """
    found = []
    ends = [*(min(shot.start, frames) for shot in shots[1:]), frames]
    for shot, end in zip(shots, ends, strict=True):
        found.append(shot)
        if isinstance(shot.reference, CopiedVideo) and end > shot.start:
            for cut in scene_cuts(shot.reference, end - shot.start, shot.offset):
                offset = shot.offset + cut / FRAMES_PER_SECOND
                framing = framed(request, shot.reference, size, seconds=offset).framing
                found.append(replace(shot, start=shot.start + cut, offset=offset, framing=framing))
    return tuple(found)
