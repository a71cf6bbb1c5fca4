"""Reading sizes and names off the tensors of a released checkpoint."""

import re
from collections.abc import Mapping

from talkinghead_lab.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def shape_of(shapes: Shapes, name: str, dims: int, file: str) -> tuple[int, ...]:
    """The shape of a tensor that tells a size of a network.

    Raises:
        CheckpointError: it is not there or has not `dims` dimensions; `file` is the released file that would
            hold it.
    """
    if name not in shapes:
        raise CheckpointError(
            f"the tensor `{name}`, which tells a size of the network, is missing",
            remedy=f"Check that the file is whole and has the tensor names of {file}.",
        )
    if len(shapes[name]) != dims:
        raise CheckpointError(
            f"the tensor `{name}` is not of this network",
            received=f"shape {tuple(shapes[name])}",
            allowed=f"{dims} dimensions",
            remedy=f"Check that the file has the layout of {file}.",
        )
    return tuple(shapes[name])


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """How many blocks `prefix`0, `prefix`1, … there are, going by the highest number."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    return 1 + max((int(match[1]) for name in shapes if (match := pattern.match(name))), default=-1)


def rename(name: str, modules: Mapping[str, str]) -> str:
    """Replace the module at the front of a tensor's name.

    Args:
        name: of a tensor, such as `blocks.3.attn.q.weight`, or of a module.
        modules: pattern of a module's released name → its name here. What follows the module (`weight`,
            `bias`, the parts of a quantised weight) stays; a name that no pattern fits stays altogether.
    """
    for pattern, replacement in modules.items():
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            return match.expand(replacement) + name[match.end() :]
    return name
