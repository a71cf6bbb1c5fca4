"""The face that SyncNet's released evaluation looks at: found by S3FD, followed from frame to frame.

Sizes and thresholds are those of `run_pipeline.py` in github.com/joonson/syncnet_python.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from talkinghead_lab.errors import MediaError
from talkinghead_lab.measures.given_weights import S3FD_FACES
from talkinghead_lab.media.video import Frames
from talkinghead_lab.models.judges.s3fd import S3FD
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import load_strict

SHRUNK = 4  # the detector sees pictures of a quarter of the size
LOWEST_SCORE = 0.9
LARGEST_OVERLAPS = (0.3, 0.1)  # of two boxes in a picture: the network's own suppression, then a second one
SMALLEST_OVERLAP = 0.5  # of a face with itself in the frame before
LONGEST_GAP = 25  # frames without the face
SHORTEST_TRACK = 100  # frames; of a video of fewer than twice as many, half of it
SMALLEST_FACE = 100  # pixels

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class FaceTrack:
    """One face in consecutive frames.

    Args:
        start: number of the first frame.
        boxes: [F, 4], left, top, right and bottom in pixels.
    """

    start: int
    boxes: Boxes


class FaceFinder:
    """Finds the faces in each frame of a video.

    Args:
        most_frames: later frames are ignored.

    Raises:
        CheckpointError: the variable S3FD_MODEL names no file, or other weights.
    """

    def __init__(self, most_frames: int) -> None:
        self._most_frames = most_frames
        self._network = _network(S3FD_FACES.path())
        self._found: list[Boxes] = []

    def add(self, pixels: Frames) -> None:
        """Add the next frame, uint8 [H, W, 3]."""
        if len(self._found) < self._most_frames:
            self._found.append(find_faces(self._network, pixels))

    def track(self) -> FaceTrack:
        """The face that is followed longest.

        Raises:
            MediaError: no face is followed for long enough.
        """
        tracks = follow(self._found)
        if not tracks:
            raise MediaError(
                "no face is followed for long enough",
                received=f"{sum(map(bool, map(len, self._found)))} of {len(self._found)} frames with a face",
                allowed=f"faces of more than {SMALLEST_FACE} pixels in more than "
                f"{_shortest(len(self._found))} frames",
            )
        return max(tracks, key=lambda track: len(track.boxes))


@torch.inference_mode()
def find_faces(network: S3FD, pixels: Frames) -> Boxes:
    """Boxes of the faces in a frame, uint8 [H, W, 3], best first: left, top, right and bottom, [N, 4]."""
    height, width = pixels.shape[:2]
    scores, boxes = network(torch.from_numpy(shrunk(pixels)).permute(2, 0, 1)[None])
    kept = scores > LOWEST_SCORE
    order = scores[kept].argsort(descending=True, stable=True)
    found: Boxes = boxes[kept][order].double().numpy() * [width, height, width, height]
    for overlap in LARGEST_OVERLAPS:
        found = _suppressed(found, overlap)
    return found


def shrunk(pixels: Frames) -> NDArray[np.float32]:
    """A quarter of the size, as OpenCV resizes bilinearly: of every 4×4 pixels, the mean of the middle four.

    Args:
        pixels: uint8 [H, W, 3]; at the right and lower edge, the last pixels are repeated.
    """
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % SHRUNK), (0, -width % SHRUNK), (0, 0)), "edge").astype(np.float32)
    rows = padded[1::SHRUNK] + padded[2::SHRUNK]
    means = np.floor((rows[:, 1::SHRUNK] + rows[:, 2::SHRUNK] + 2) / 4)
    found: NDArray[np.float32] = means[: round(height / SHRUNK), : round(width / SHRUNK)]
    return found


def _suppressed(boxes: Boxes, overlap: float) -> Boxes:
    """Without boxes that overlap a better one."""
    kept: list[int] = []
    for number, box in enumerate(boxes):
        if all(_overlap(box, boxes[better]) <= overlap for better in kept):
            kept.append(number)
    return boxes[kept]


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Intersection over union."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / (float(np.prod(one[2:] - one[:2])) + float(np.prod(other[2:] - other[:2])) - shared)


def follow(found: list[Boxes]) -> list[FaceTrack]:
    """Tracks of faces, from the boxes in each frame; frames between detections are interpolated."""
    left = [list(boxes) for boxes in found]
    tracks = []
    while any(left):
        taken: dict[int, NDArray[np.float64]] = {}
        last = -1
        for number, boxes in enumerate(left):
            if taken and number - last > LONGEST_GAP:
                break
            for place, box in enumerate(boxes):
                if not taken or _overlap(box, taken[last]) > SMALLEST_OVERLAP:
                    taken[number], last = boxes.pop(place), number
                    break
        if len(taken) > _shortest(len(found)):
            numbers = np.arange(min(taken), last + 1)
            columns = [np.interp(numbers, list(taken), column) for column in np.stack(list(taken.values())).T]
            boxes_of_all = np.stack(columns, 1)
            if (boxes_of_all[:, 2:] - boxes_of_all[:, :2]).mean(0).max() > SMALLEST_FACE:
                tracks.append(FaceTrack(int(numbers[0]), boxes_of_all))
    return tracks


def _shortest(frames: int) -> int:
    return min(SHORTEST_TRACK, frames // 2)


@cache
def _network(path: Path) -> S3FD:
    network = S3FD()
    load_strict(network, read_tensors(path), path.name, torch.float32, "cpu")
    return network.eval()
