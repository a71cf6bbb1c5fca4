"""Download the released checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.weights import checkpoints


@dataclass(frozen=True)
class Part:
    """Files of one repository that the loaders read.

    Args:
        folder: key of the repository in `checkpoints.RELEASED_REPOSITORIES`.
        revision: branch, reference or commit.
        patterns: of the files' names.
    """

    folder: str
    revision: str
    patterns: tuple[str, ...]


WAN_FILES = ("config.json", "models_*", *(f"{stem}*" for stem in (checkpoints.TRANSFORMER, checkpoints.VAE)))
# The main branch of the speech encoder has its weights only as a pickle. InfiniteTalk's instructions take
# them from this pull request.
PARTS = (
    Part("ckpt_dir", "main", (*WAN_FILES, f"{checkpoints.TOKENIZER}/*")),
    Part("wav2vec_dir", "main", ("*.json",)),
    Part("wav2vec_dir", "refs/pr/1", ("model.safetensors",)),
    Part("infinitetalk_dir", "main", ("single/*", "multi/*")),
)


def fetch_released(folder: Path) -> dict[str, Path]:
    """Download the released files that the pipeline reads.

    Files that are already in `folder` are checked and not downloaded again.

    Returns:
        The folder of each repository, by the environment variable that names it.
    """
    from huggingface_hub import snapshot_download

    variables = {}
    for part in PARTS:
        repository = checkpoints.RELEASED_REPOSITORIES[part.folder]
        target = folder / repository.rpartition("/")[2]
        snapshot_download(
            repository, revision=part.revision, local_dir=target, allow_patterns=list(part.patterns)
        )
        variables[part.folder.upper()] = target
    return variables
