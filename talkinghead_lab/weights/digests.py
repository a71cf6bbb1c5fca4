"""Digests of a checkpoint's files."""

from collections.abc import Mapping

from talkinghead_lab.foundation.digests import FileState, known_sha256
from talkinghead_lab.weights.locating import CheckpointFiles, weight_files


def weight_states(files: CheckpointFiles) -> dict[str, FileState]:
    """The present state of every file that loading a checkpoint reads, by its place in the checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """
    return {name: FileState.of(path) for name, path in weight_files(files).items()}


def weight_digests(states: Mapping[str, FileState]) -> dict[str, str]:
    """Digests of files, by place in the checkpoint.

    Raises:
        CheckpointError: a file has changed since its state was taken.
    """
    return {name: known_sha256(state) for name, state in states.items()}
