"""Read a weight file of any supported kind: which networks it holds, under released names, as stored."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.digests import FileState
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.formats.containers import Stored, WeightFile, open_file
from talkinghead_lab.weights.formats.names.recognition import ROLES, recognised
from talkinghead_lab.weights.formats.shards import check_all_there
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
    check_all_there(paths)
    for file in map(open_file, paths):
        _check_disjoint(tensors, file, paths)
        tensors |= file.tensors
        metadata |= file.metadata
    # A weight and its scale may lie in two shards.
    found = recognised(combined(WeightFile(paths[0], tensors, metadata)), paths[0])
    return NetworkFile(paths, found.roles, found.layout, found.tensors, metadata)


def _check_disjoint(tensors: Mapping[str, Stored], file: WeightFile, paths: tuple[Path, ...]) -> None:
    if twice := sorted(tensors.keys() & file.tensors.keys()):
        raise CheckpointError(
            f"two shards hold `{twice[0]}`" + (f" and {len(twice) - 1} more tensors" if twice[1:] else ""),
            received=f"{file.path.name} and one of {', '.join(p.name for p in paths if p != file.path)}"[
                :300
            ],
            remedy="Keep the shards of one set only in the folder.",
        )


@dataclass(frozen=True)
class NetworkContent:
    """What a weight file holds, without its tensors.

    Args:
        roles, layout: see `NetworkFile`.
        stored_as: number of tensors by the type in which they are stored.
        rows: of the tensor by which a role is recognised, by role.
    """

    roles: tuple[str, ...]
    layout: str
    stored_as: Mapping[str, int]
    rows: Mapping[str, int]


def network_content(*paths: Path) -> NetworkContent:
    """What a weight file, or all shards of one, hold; read once for each state of the files.

    Raises:
        CheckpointError: as `read_network`.
    """
    try:
        states = tuple(map(FileState.of, paths))
    except OSError:  # reading tells what is missing
        return _content(read_network(*paths))
    return _content_in(paths, states)


@lru_cache(maxsize=256)  # safetensors 0.8.0 leaks two objects for each tensor of a file that it maps
def _content_in(paths: tuple[Path, ...], states: tuple[FileState, ...]) -> NetworkContent:
    return _content(read_network(*paths))


def _content(network: NetworkFile) -> NetworkContent:
    types = (
        tensor.stored_as if isinstance(tensor, QuantizedLinear) else str(tensor.dtype).removeprefix("torch.")
        for tensor in network.tensors.values()
    )
    shapes = {role: network.tensors[name].shape for role, name in ROLES.items() if name in network.tensors}
    rows = {role: shape[0] for role, shape in shapes.items() if shape}
    return NetworkContent(network.roles, network.layout, Counter(types), rows)
