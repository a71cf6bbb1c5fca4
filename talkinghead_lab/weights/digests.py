"""States of a checkpoint's files, by which their digests are cached."""

from talkinghead_lab.foundation.digests import FileState
from talkinghead_lab.weights.locating import CheckpointFiles, weight_files


def weight_states(files: CheckpointFiles) -> dict[str, FileState]:
    """The present state of every file that loading a checkpoint reads, by its place in the checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """
    return {name: FileState.of(path) for name, path in weight_files(files).items()}
