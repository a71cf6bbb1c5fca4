"""Digests of a checkpoint's files."""

from collections.abc import Mapping

from talkinghead_lab.foundation.digests import FileState, known_sha256
from talkinghead_lab.weights.checkpoints import CheckpointFiles, weight_files


def weight_states(files: CheckpointFiles) -> dict[str, FileState]:
    """The present state of every file that loading a checkpoint reads, by its place in the checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """
    return {name: FileState.of(path) for name, path in weight_files(files).items()}


def weight_digests(files: CheckpointFiles | Mapping[str, FileState]) -> dict[str, str]:
    """Digest of every file that loading a checkpoint reads, by its place in the checkpoint.

    Args:
        files: a checkpoint as it is now, or states of its files.

    Raises:
        CheckpointError: a file is missing, or has changed since its state was taken.
    """
    states = weight_states(files) if isinstance(files, CheckpointFiles) else files
    return {name: known_sha256(state) for name, state in states.items()}
