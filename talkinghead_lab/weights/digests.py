"""Digests of a checkpoint's files."""

from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.weights.checkpoints import CheckpointFiles, weight_files


def weight_digests(files: CheckpointFiles) -> dict[str, str]:
    """Digest of every file that loading a checkpoint reads, by its place in the checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """
    return {name: known_sha256(path) for name, path in weight_files(files).items()}
