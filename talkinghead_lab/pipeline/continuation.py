"""Going on from the last frames of an earlier video."""

from torch import Tensor

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.frame_size import Size
from talkinghead_lab.media.inputs import CopiedVideo
from talkinghead_lab.media.reference import TIME_TOLERANCE, ReferenceMedia
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import framing_of


def last_frames(request: GenerationParams, video: ReferenceMedia, frame: Size) -> Tensor:
    """The last frames of `continue_video` in the frame, 1/25 s apart: uint8 [motion_frame, 3, H, W].

    The last of them is the last of the video, whatever its frame rate.

    Raises:
        InvalidRequest: it is a picture or too short, or its shape needs a crop or padding that cannot be had.
        MediaError: it cannot be decoded.
    """
    count = request.motion_frame
    if not isinstance(video, CopiedVideo):
        raise InvalidRequest(
            "continue_video goes on from the last frames of a video, and this is a single picture",
            received=request.continue_video,
            remedy="Name a video, or set image_path to the picture alone.",
            field="continue_video",
        )
    end, needed = video.last_time(), (count - 1) / FRAMES_PER_SECOND
    if end + TIME_TOLERANCE < needed:
        raise InvalidRequest(
            f"continue_video is too short: the first chunk repeats its last {count} frames (motion_frame)",
            received=f"{int((end + TIME_TOLERANCE) * FRAMES_PER_SECOND) + 1} frames at 25 per second",
            allowed=f"at least {count}",
            remedy="Give a longer video, or lower motion_frame.",
            field="continue_video",
        )
    framing = framing_of(request, video.frame_at(end))
    return video.fitted_frames(end - needed, count, frame, framing)
