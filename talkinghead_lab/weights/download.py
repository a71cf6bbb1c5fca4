"""Download the released checkpoint."""

from pathlib import Path

from talkinghead_lab.weights import checkpoints


def fetch_released(folder: Path) -> dict[str, Path]:
    """Download the released files that the pipeline reads.

    Files that are already in `folder` are checked and not downloaded again.

    Returns:
        The folder of each repository, by the environment variable that names it.
    """
    from huggingface_hub import snapshot_download

    wanted = {
        "ckpt_dir": [
            "config.json",
            f"{checkpoints.TRANSFORMER}*",
            f"{checkpoints.VAE}*",
            "models_*",
            f"{checkpoints.TOKENIZER}/*",
        ],
        "wav2vec_dir": ["*.json", "*.bin", "*.safetensors"],
        "infinitetalk_dir": ["single/*", "multi/*"],
    }
    variables = {}
    for field, repository in checkpoints.RELEASED_REPOSITORIES.items():
        target = folder / repository.rpartition("/")[2]
        snapshot_download(repository, local_dir=target, allow_patterns=wanted[field])
        variables[field.upper()] = target
    return variables
