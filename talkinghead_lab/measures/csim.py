"""CSIM: whether a face recogniser takes the person in the video for the one in the portrait.

ArcFace (Deng et al. 2019) in ONNX, whose file the user supplies. Faces are aligned as InsightFace aligns
them, by five points; the points are MediaPipe's instead of those of InsightFace's detector.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from talkinghead_lab.errors import CheckpointError, MissingExtra, TalkingHeadError
from talkinghead_lab.measures.given_weights import ARCFACE
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.measures.photographed_faces import Faces, find_face
from talkinghead_lab.media.video import Frames

SIZE = 112  # pixels
# Where InsightFace puts the left eye, the right eye, the tip of the nose and the corners of the mouth.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

Points = NDArray[np.float64]


def csim(portrait: Image.Image, frames: Mapping[int, Image.Image], faces: Faces) -> Measure:
    """Mean cosine similarity of ArcFace's embeddings of portrait and frames (unit 1, higher is better).

    Args:
        portrait: the reference image.
        frames: by their number in the video.
        faces: of the video.
    """
    try:
        own = find_face(np.asarray(portrait.convert("RGB"))).points[0]
        wanted = embedding(np.asarray(portrait.convert("RGB")), own)
        shown = [number for number in frames if number < len(faces.points)]
        if not shown:
            return Measure.of("csim", None, "no frame whose face was followed")
        found = [embedding(np.asarray(frames[number]), faces.points[number]) for number in shown]
    except TalkingHeadError as error:
        return Measure.of("csim", None, str(error))
    return Measure.of("csim", float(np.mean([wanted @ each for each in found])))


def embedding(pixels: Frames, points: Points) -> NDArray[np.float32]:
    """ArcFace's embedding of length 1 of the face in a picture.

    Args:
        pixels: uint8 [H, W, 3].
        points: [5, 2], as TEMPLATE.

    Raises:
        CheckpointError: no weights, or not ArcFace's.
        MissingExtra: onnxruntime is not installed.
    """
    session = _session(ARCFACE.path())
    picture = aligned(pixels, points) / 127.5 - 1
    (found,) = session.run(None, {session.get_inputs()[0].name: picture[None].astype(np.float32)})
    vector: NDArray[np.float32] = found[0] / np.linalg.norm(found[0])
    return vector


def aligned(pixels: Frames, points: Points) -> NDArray[np.float32]:
    """The face, moved onto TEMPLATE, bilinear, black outside the picture: [3, 112, 112] from 0 to 255."""
    height, width = pixels.shape[:2]
    back = np.linalg.inv(np.vstack([similarity_transform(points, TEMPLATE), [0, 0, 1]]))[:2]
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    places = (
        np.stack([columns, rows, np.ones_like(rows)], -1) @ back.T
    )  # pixels, whole numbers at their centres
    grid = (2 * places + 1) / (width, height) - 1
    picture = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None]
    found: NDArray[np.float32] = functional.grid_sample(
        picture, torch.from_numpy(grid)[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0].numpy()
    return found


def similarity_transform(source: Points, target: Points) -> Points:
    """The rotation, scale and shift [2, 3] that bring points [N, 2] nearest to others (Umeyama 1991)."""
    centre, goal = source.mean(0), target.mean(0)
    one, other = source - centre, target - goal
    left, sizes, right = np.linalg.svd(other.T @ one)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # no reflection
    turn = (sizes @ signs) / np.square(one).sum() * (left * signs) @ right
    transform: Points = np.hstack([turn, (goal - turn @ centre)[:, None]])
    return transform


@cache
def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra(
            "CSIM needs onnxruntime", remedy="Install it: pip install 'talkinghead_lab[faces]'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own hierarchy, which it does not export
        raise CheckpointError(
            f"the file is no network in ONNX ({str(error).splitlines()[0]})", received=str(path)
        ) from None
