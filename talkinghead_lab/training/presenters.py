"""Find how presenters vary in the features of the face reader; other pictures vary in other ways.

python -m talkinghead_lab.training.presenters --people 3000
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.models.judges.face_reader import face_features
from talkinghead_lab.models.judges.presenters import (
    COMPONENTS,
    FEATURES_FILE,
    LARGEST_DIFFERENCE,
    unexplained,
)
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY
from talkinghead_lab.training.readers import random_motion

PEOPLE_AT_ONCE = 50


def presenter_features(count: int, first_seed: int, *, still: bool = False) -> Tensor:
    """Features of one frame of each of `count` presenters, at rest or in random motion: [count, N]."""
    found = []
    for start in range(first_seed, first_seed + count, PEOPLE_AT_ONCE):
        seeds = range(start, min(start + PEOPLE_AT_ONCE, first_seed + count))
        people = [sample_identity(Generator().manual_seed(seed)) for seed in seeds]
        at_rest = Motion.stack([Motion.still(1)] * len(people))
        moving = random_motion(len(people), 1, Generator().manual_seed(start))
        found.append(face_features(render(people, at_rest if still else moving)[:, 0]))
    return torch.cat(found)


def principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N] and the first principal components [C, N] of features [F, N]."""
    mean = features.mean(dim=0)
    _, directions = torch.linalg.eigh((features - mean).T.cov())  # in ascending order of variance
    return mean, directions[:, -COMPONENTS:].T.contiguous()


def main() -> None:
    """Write mean and components, and print how many unseen presenters they take for something else."""
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=3_000, help="training presenters in random motion")
    parser.add_argument("--output", type=Path, default=FEATURES_FILE, help="file of mean and components")
    chosen = parser.parse_args()
    resting = max(1, chosen.people // 6)
    at_rest = presenter_features(resting, chosen.people, still=True)
    mean, components = principal_components(torch.cat([presenter_features(chosen.people, 0), at_rest]))
    with atomic_path(chosen.output, overwrite=True) as temporary:
        save_file({"mean": mean.half(), "components": components.half()}, temporary)
    unseen = presenter_features(max(1, chosen.people // 3), FIRST_TEST_IDENTITY)
    away = unexplained(unseen, mean, components)
    beyond = (away > LARGEST_DIFFERENCE).float().mean()
    print(f"unseen presenters: at most {away.max():.3f}, {beyond:.2%} beyond {LARGEST_DIFFERENCE}")


if __name__ == "__main__":
    main()
