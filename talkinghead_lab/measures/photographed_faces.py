"""Faces in videos of photographed people: MediaPipe's FaceLandmarker sees them, whose model the user has."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.errors import CheckpointError, MediaError, MissingExtra
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media import video

VARIABLE = "FACE_LANDMARKER"
# Of MediaPipe's canonical face mesh; past its 468 points the irises follow.
MESH_POINTS = 468
INNER_LIPS = (13, 14)  # middle of the upper and of the lower one
EYES = (33, 263)  # outer corners
LARGEST_SHARE_WITHOUT_FACE = 0.1


@dataclass(frozen=True)
class Faces:
    """The face in each frame of a video.

    Args:
        opening: [F], gap between the inner lips over the distance of the outer eye corners, so that neither
            size nor tilt of the head matters.
        boxes: [F, 4], left, top, right and bottom of the face from chin to forehead, in pixels.
    """

    opening: NDArray[np.float64]
    boxes: NDArray[np.float64]


def see_faces(path: str | Path, most_frames: int) -> Faces:
    """The one face of a video; a frame in which none is found takes what its neighbours have.

    Args:
        path: the video.
        most_frames: how many are looked at, from the start.

    Raises:
        CheckpointError: the variable FACE_LANDMARKER names no model file, or a wrong one.
        MissingExtra: MediaPipe is not installed.
        MediaError: too many frames show no face.
    """
    model = model_file(VARIABLE, "face_landmarker.task of MediaPipe's FaceLandmarker")
    rows: list[NDArray[np.float64] | None] = []
    with _landmarker(model) as landmarker:
        for pixels in video.read_frames(path):
            if len(rows) == most_frames:
                break
            rows.append(_face(landmarker, pixels, len(rows)))
    found = [number for number, row in enumerate(rows) if row is not None]
    if len(found) < (1 - LARGEST_SHARE_WITHOUT_FACE) * len(rows) or not found:
        raise MediaError(
            "no face is seen in too many frames", received=f"{len(rows) - len(found)} of {len(rows)}"
        )
    known = np.stack([row for row in rows if row is not None])
    columns = [np.interp(range(len(rows)), found, column) for column in known.T]
    return Faces(columns[0], np.stack(columns[1:], axis=1))


def model_file(variable: str, kind: str) -> Path:
    """The file that an environment variable names.

    Raises:
        CheckpointError: it is not set, or names no file.
    """
    named = os.environ.get(variable)
    if not named or not Path(named).is_file():
        raise CheckpointError(
            f"the variable {variable} is not set" if not named else f"{variable} names no file",
            received=named or None,
            remedy=f"Set it to {kind}.",
        )
    return Path(named)


def _face(landmarker: Any, pixels: video.Frames, number: int) -> NDArray[np.float64] | None:
    """[5]: opening, left, top, right, bottom; None where no face is seen."""
    import mediapipe

    picture = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(pixels))
    seen = landmarker.detect_for_video(picture, round(1000 * number / FRAMES_PER_SECOND)).face_landmarks
    if not seen:
        return None
    height, width = pixels.shape[:2]
    points = np.array([(point.x * width, point.y * height) for point in seen[0][:MESH_POINTS]])
    gap, eyes = (np.linalg.norm(points[one] - points[other]) for one, other in (INNER_LIPS, EYES))
    return np.array([gap / eyes, *points.min(0), *points.max(0)])


def _landmarker(model: Path) -> Any:
    try:
        from mediapipe.tasks import python as tasks
        from mediapipe.tasks.python import vision
    except ImportError:
        raise MissingExtra(
            "seeing faces needs MediaPipe", remedy="Install it: pip install 'talkinghead_lab[faces]'."
        ) from None
    options = vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO,
        num_faces=1,
    )
    try:
        return vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the file is no face landmarker ({str(error).splitlines()[0]})", received=str(model)
        ) from None
