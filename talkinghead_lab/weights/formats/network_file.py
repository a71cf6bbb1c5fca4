"""Read a weight file of any supported kind: which networks it holds, under released names, as stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from talkinghead_lab.weights.formats.containers import Stored, WeightFile, open_file
from talkinghead_lab.weights.formats.names.recognition import recognised
from talkinghead_lab.weights.formats.stored_types import combined


@dataclass(frozen=True)
class NetworkFile:
    """A weight file, or the shards of one, whose content is known.

    Args:
        paths: where it is.
        roles: what it holds, of `names.recognition.ROLES`; a merged file holds a transformer and an adapter.
        layout: whose names it uses, in words.
        tensors: under the names of the released files.
        metadata: text by key, from the headers.
    """

    paths: tuple[Path, ...]
    roles: tuple[str, ...]
    layout: str
    tensors: dict[str, Stored]
    metadata: Mapping[str, str]

    @property
    def plain(self) -> dict[str, Tensor]:
        """The tensors, with quantised matrices dequantised to float32."""
        return {
            name: stored if isinstance(stored, Tensor) else stored.dequantized()
            for name, stored in self.tensors.items()
        }


def read_network(*paths: Path) -> NetworkFile:
    """Read a weight file, or all shards of one; tensors stay memory-mapped.

    Raises:
        CheckpointError: a file is damaged, or is no weight file of this model; the error says what it is.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in map(open_file, paths):
        tensors |= file.tensors
        metadata |= file.metadata
    # A weight and its scale may lie in two shards.
    found = recognised(combined(WeightFile(paths[0], tensors, metadata)), paths[0])
    return NetworkFile(paths, found.roles, found.layout, found.tensors, metadata)
