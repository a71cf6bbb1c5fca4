"""Sizes and names of the tensors of a released checkpoint."""

import re
from collections.abc import Mapping

from talkinghead_lab.errors import CheckpointError

MOST_DIGITS = 3  # of a block's number
Shapes = Mapping[str, tuple[int, ...]]


def shape_of(shapes: Shapes, name: str, dims: int, file: str) -> tuple[int, ...]:
    """The shape of a tensor from which a size of a network is read.

    Args:
        shapes: tensor name → shape.
        name: of the tensor.
        dims: number of dimensions it must have.
        file: the released file that holds it, for error messages.

    Raises:
        CheckpointError: the tensor is missing or has a different number of dimensions.
    """
    if name not in shapes:
        raise CheckpointError(
            f"the tensor `{name}`, which determines a size of the network, is missing",
            remedy=f"Check that the file is complete and has the tensor names of {file}.",
        )
    if len(shapes[name]) != dims:
        raise CheckpointError(
            f"the tensor `{name}` does not belong to this network",
            received=f"shape {tuple(shapes[name])}",
            allowed=f"{dims} dimensions",
            remedy=f"Check that the file has the layout of {file}.",
        )
    return tuple(shapes[name])


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """Number of blocks `prefix`0, `prefix`1, …, inferred from the highest index.

    Raises:
        CheckpointError: the index is beyond every network's.
    """
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    found = max((match[1] for name in shapes if (match := pattern.match(name))), key=_as_index, default="-1")
    if len(found) > MOST_DIGITS:
        raise CheckpointError("the number of a block is beyond every network's", received=prefix + found[:20])
    return 1 + int(found)


def _as_index(digits: str) -> tuple[int, str]:
    return len(digits), digits


def rename(name: str, modules: Mapping[str, str]) -> str:
    """Replace the module name at the start of a tensor name.

    Args:
        name: of a tensor, such as `blocks.3.attn.q.weight`, or of a module.
        modules: pattern of a module's released name → its name here. The rest of the name (`weight`, `bias`,
            the parts of a quantised weight) is kept, as is a name that matches no pattern.
    """
    for pattern, replacement in modules.items():
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            return match.expand(replacement) + name[match.end() :]
    return name
