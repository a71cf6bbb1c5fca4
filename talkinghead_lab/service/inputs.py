"""Which files a request may read, and their maximum size."""

from pathlib import Path

import av
from PIL import Image

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, local_file
from talkinghead_lab.media.image import PICTURE_FORMATS
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.service.problems import Problem
from talkinghead_lab.service.settings import ServiceSettings

# FFmpeg reads from a Python file object and may use no protocol: a playlist cannot make it open other files.
NO_FURTHER_FILES = {"protocol_whitelist": "none"}


def in_shared(settings: ServiceSettings, value: str) -> str:
    """Make a path of a request absolute; relative paths start at the shared folder."""
    return value if value.startswith(SAMPLE_PREFIX) else str(settings.shared_dir.absolute() / value)


def allowed_inputs(settings: ServiceSettings, params: GenerationParams) -> GenerationParams:
    """Check the files of a request and return it with links and `..` resolved.

    Raises:
        Problem: 403 outside the shared and output folders, 404 not found, 413 too large, 422 not readable.
    """
    image = allowed_file(settings, "image_path", params.image_path)
    recording = allowed_file(settings, "audio_path", params.audio_path)
    check_pixels(image, settings.largest_pixels)
    check_seconds(recording, settings.longest_seconds)
    return params.replace(image_path=str(image), audio_path=str(recording))


def allowed_file(settings: ServiceSettings, field: str, value: str) -> Path:
    """Find the file of an absolute path or of a bundled sample.

    Raises:
        Problem: 403 outside the allowed folders, 404 not found, 413 too large.
    """
    try:
        if value.startswith(SAMPLE_PREFIX):
            return local_file(value)
        path = Path(value).resolve()
        folders = (settings.shared_dir.resolve(), settings.output_dir.resolve())
        if not any(path.is_relative_to(folder) for folder in folders):
            raise Problem(403, f"`{field}` is outside the shared and output folders.")
        file = local_file(str(path))
        size = file.stat().st_size
    except MediaError as error:
        raise Problem(404, f"`{field}`: {error.problem.split(' (')[0]}.") from None
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte, a name too long
        raise Problem(404, f"`{field}`: no such file.") from None
    if size > settings.largest_mib * 2**20:
        raise Problem(413, f"`{field}` is larger than {settings.largest_mib:g} MiB.")
    return file


def check_pixels(path: Path, most: int) -> None:
    """Reject images and videos with too many pixels; reads only the header.

    Raises:
        Problem: 413 too many pixels, 422 neither an image nor a video.
    """
    width, height = _picture_size(path) or _video_size(path)
    if width * height > most:
        raise Problem(413, f"`image_path` has {width}x{height} pixels; allowed: {most} in total.")


def _picture_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            return picture.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Problem(413, "`image_path` has too many pixels.") from None
    except Exception:  # Pillow raises almost anything for a damaged file; it may still be a video
        return None


def _video_size(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file, av.open(file, "r", options=NO_FURTHER_FILES) as container:
            context = container.streams.video[0].codec_context
            if context is not None:  # None for formats without a decoder
                return context.width, context.height
    except (av.error.FFmpegError, ValueError, IndexError, OSError):
        pass
    raise Problem(422, "`image_path` is not a readable image or video.")


def check_seconds(path: Path, longest: float) -> None:
    """Reject recordings that are too long; adds up the packets, because a header may be wrong.

    Raises:
        Problem: 413 too long, 422 not readable.
    """
    seconds = 0.0
    try:
        with (
            path.open("rb") as file,
            av.open(file, "r", options=NO_FURTHER_FILES, metadata_errors="replace") as container,
        ):
            for packet in container.demux(container.streams.audio[0]):
                seconds += float((packet.duration or 0) * (packet.time_base or 0))
                if seconds > longest:
                    raise Problem(413, f"`audio_path` is longer than {longest:g} seconds.")
    except (av.error.FFmpegError, ValueError, IndexError, OSError):
        raise Problem(422, "`audio_path` is not a readable recording.") from None
