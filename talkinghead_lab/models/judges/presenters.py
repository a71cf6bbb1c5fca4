"""How much a picture differs from the cartoon presenters that the bundled model was trained on.

Presenters vary along few directions in the space of the face reader's features: their principal components.
Photographs and other drawings depart from the mean presenter in all directions.
"""

from functools import cache

from safetensors.torch import load_file
from torch import Tensor

from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.models.judges.face_reader import face_features

FEATURES_FILE = EMBEDDED_FOLDER / "presenter_features.safetensors"
COMPONENTS = 32
FEATURE_GRID = (16, 8, 8)  # channels, rows, columns of the face reader's features
ROWS_ABOVE_THE_MOUTH = 3  # whose features see little of it
LARGEST_DIFFERENCE = 0.8  # of a presenter; MODEL_CARD.md gives the error rates


def presenter_difference(frames: Tensor) -> Tensor:
    """How each frame's features depart from the mean presenter, [F]: 0 as presenters do, 1 in other ways.

    Args:
        frames: [F, 3, H, W] in [−1, 1], square, framed as the bundled model's presenters are.
    """
    mean, components = _variation()
    return unexplained(face_features(frames), mean, components)


def presenter_components(features: Tensor) -> Tensor:
    """Where `face_features` lie along the presenters' principal components, from the mean.

    [F, 1024] → [F, 32].
    """
    mean, components = _variation()
    return (features - mean) @ components.T


def presenter_appearance(frames: Tensor) -> Tensor:
    """Features of hair, forehead and backdrop, [F, N], less the mean: who it is, whatever is said.

    Args:
        frames: as for `presenter_difference`.
    """
    mean, _ = _variation()
    away = (face_features(frames) - mean).unflatten(1, FEATURE_GRID)
    return away[:, :, :ROWS_ABOVE_THE_MOUTH].flatten(1)


def unexplained(features: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """The sine of the angle between features [F, N] less the mean and orthonormal components [C, N]: [F]."""
    away = features - mean
    outside = away - away @ components.T @ components
    return outside.norm(dim=1) / away.norm(dim=1)


@cache
def _variation() -> tuple[Tensor, Tensor]:
    stored = load_file(FEATURES_FILE)
    return stored["mean"].float(), stored["components"].float()
