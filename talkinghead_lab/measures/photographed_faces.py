"""Faces of photographed people, found by MediaPipe's FaceLandmarker, whose model file the user supplies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkinghead_lab.errors import (
    CheckpointError,
    InvalidRequest,
    MediaError,
    MissingExtra,
    TalkingHeadError,
)
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.given_weights import LANDMARKER
from talkinghead_lab.media.video import Frames

# Of MediaPipe's canonical face mesh; the irises follow after its 468 points. Left is that of the picture.
MESH_POINTS = 468
INNER_LIPS = (13, 14)  # middle of the upper and of the lower one
EYES = (33, 263)  # outer corners
LEFT_EYE, RIGHT_EYE = (33, 133), (362, 263)  # both corners
NOSE_AND_MOUTH = (1, 61, 291)  # tip of the nose, corners of the mouth
LARGEST_SHARE_WITHOUT_FACE = 0.1


@dataclass(frozen=True)
class Faces:
    """The face in each frame of a video.

    Args:
        opening: [F], gap between the inner lips over the distance of the outer eye corners: independent of
            size and tilt of the head.
        boxes: [F, 4], left, top, right and bottom of the face from chin to forehead, in pixels.
        points: [F, 5, 2], middles of the left and right eye, tip of the nose, left and right corner of the
            mouth, in pixels.
        pose: [F, 3], turn, nod and tilt of the head in degrees.
    """

    opening: NDArray[np.float64]
    boxes: NDArray[np.float64]
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 5, 2)))
    pose: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))


class FaceTracker:
    """Follows the one face of a video, frame by frame.

    Args:
        most_frames: later frames are ignored.

    Raises:
        CheckpointError: the variable FACE_LANDMARKER names no model file, or a wrong one.
        MissingExtra: MediaPipe is not installed.
    """

    def __init__(self, most_frames: int):
        self._most_frames = most_frames
        self._rows: list[NDArray[np.float64] | None] = []
        self._landmarker = _landmarker(LANDMARKER.path())

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        if len(self._rows) < self._most_frames:
            time = round(1000 * len(self._rows) / FRAMES_PER_SECOND)
            self._rows.append(_face(self._landmarker.detect_for_video(_picture(pixels), time), pixels))

    def faces(self) -> Faces:
        """End the tracking; a frame without a face is interpolated from its neighbours.

        Raises:
            MediaError: too many frames show no face.
        """
        self._landmarker.close()
        return _faces(self._rows)


def find_face(pixels: Frames) -> Faces:
    """The face in one picture, uint8 [H, W, 3], as a video of one frame.

    Raises:
        MediaError: there is none.
        CheckpointError, MissingExtra: as for `FaceTracker`.
    """
    return _faces([_face(_of_pictures(LANDMARKER.path(), 1).detect(_picture(pixels)), pixels)])


def find_faces(pixels: Frames, most: int) -> NDArray[np.float64]:
    """Boxes of the faces in one picture, uint8 [H, W, 3]: [N, 4] as in `Faces`, N at most `most`.

    Raises:
        MediaError: there is none.
        CheckpointError, MissingExtra: as for `FaceTracker`.
    """
    seen = _of_pictures(LANDMARKER.path(), most).detect(_picture(pixels))
    if not seen.face_landmarks:
        raise MediaError("no face is visible", received="a picture")
    meshes = [[(point.x, point.y) for point in face[:MESH_POINTS]] for face in seen.face_landmarks]
    corners = [[*np.min(mesh, axis=0), *np.max(mesh, axis=0)] for mesh in meshes]
    return np.array(corners) * (pixels.shape[1::-1] * 2)


def nobody_found(
    error: TalkingHeadError, problem: str, *, received: str, instead: str, field: str
) -> InvalidRequest:
    """What a request gets where no cartoon presenter is seen, and looking for a photographed one failed.

    Args:
        error: of `find_face`, `find_faces` or `FaceTracker`.
        problem: who was not found, and for which field.
        received: the picture, in words.
        instead: what else the user may do.
        field: of the request.
    """
    return InvalidRequest(
        f"{problem}: no cartoon presenter, and no photographed one ({error.problem})",
        received=received,
        remedy=f"{error.remedy or ''} Or {instead}.".strip(),
        field=field,
    )


def _faces(rows: Sequence[NDArray[np.float64] | None]) -> Faces:
    """The rows of `_face`, one a frame; those without a face are interpolated."""
    found = [number for number, row in enumerate(rows) if row is not None]
    if len(found) < (1 - LARGEST_SHARE_WITHOUT_FACE) * len(rows) or not found:
        raise MediaError(
            "no face is visible in too many frames", received=f"{len(rows) - len(found)} of {len(rows)}"
        )
    known = np.stack([row for row in rows if row is not None])
    filled = np.stack([np.interp(range(len(rows)), found, column) for column in known.T], axis=1)
    return Faces(filled[:, 0], filled[:, 1:5], filled[:, 5:15].reshape(-1, 5, 2), filled[:, 15:])


def _picture(pixels: Frames) -> Any:
    import mediapipe

    return mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(pixels))


def _face(seen: Any, pixels: Frames) -> NDArray[np.float64] | None:
    """[18]: opening, box, points and pose, as in `Faces`; None where no face is visible."""
    from scipy.spatial.transform import Rotation

    if not seen.face_landmarks:
        return None
    height, width = pixels.shape[:2]
    mesh = np.array([(point.x * width, point.y * height) for point in seen.face_landmarks[0][:MESH_POINTS]])
    gap, eyes = (np.linalg.norm(mesh[one] - mesh[other]) for one, other in (INNER_LIPS, EYES))
    five = [mesh[list(LEFT_EYE)].mean(0), mesh[list(RIGHT_EYE)].mean(0), *mesh[list(NOSE_AND_MOUTH)]]
    turned = Rotation.from_matrix(np.asarray(seen.facial_transformation_matrixes[0])[:3, :3])
    pose = turned.as_euler("YXZ", degrees=True)
    return np.concatenate([[gap / eyes], mesh.min(0), mesh.max(0), *five, pose])


@cache
def _of_pictures(model: Path, faces: int) -> Any:
    """A landmarker that remembers no picture, so one serves all pictures of a process."""
    return _landmarker(model, faces, moving=False)


def _landmarker(model: Path, faces: int = 1, moving: bool = True) -> Any:
    try:
        from mediapipe.tasks import python as tasks
        from mediapipe.tasks.python import vision
    except ImportError:
        raise MissingExtra(
            "finding faces needs MediaPipe", remedy="Install it: pip install 'talkinghead_lab[faces]'."
        ) from None
    options = vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO if moving else vision.RunningMode.IMAGE,
        num_faces=faces,
        output_facial_transformation_matrixes=True,
    )
    try:
        return vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the file is not a face landmarker ({str(error).splitlines()[0]})", received=str(model)
        ) from None
