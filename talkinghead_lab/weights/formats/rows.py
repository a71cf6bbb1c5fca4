"""Build the layer for an 8-bit matrix and its scales, and check that the scales can be right."""

from operator import mod
from pathlib import Path

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.rows import NAMES, RowQuantizedLinear
from talkinghead_lab.weights.formats.containers import Stored
from talkinghead_lab.weights.formats.unsupported import refusal

EIGHT_BITS = tuple(NAMES)


def rows(name: str, weight: Tensor, scale: Tensor | None, path: Path) -> Stored:
    """The layer for a weight [out, in]. Anything else is dequantised: exactly to bf16, or scaled to float32.

    Args:
        name: of the weight, for errors.
        weight: of one of `EIGHT_BITS`.
        scale: [], [1], [out] or [out, 1], by which stored values are multiplied; None: 1. It becomes [out, 1]
            in float32, for then one matmul serves all kinds.
        path: of the file, for errors.

    Raises:
        CheckpointError: the scale is of another shape, negative or not finite.
    """
    if scale is None and (weight.ndim != 2 or not name.endswith(".weight")):
        return weight.bfloat16()
    by_row = torch.ones(len(weight), 1) if scale is None else _by_row(name, weight, scale, path)
    if weight.ndim != 2:
        return weight.float() * by_row.view(-1, *[1] * (weight.ndim - 1))
    return RowQuantizedLinear(weight, by_row)


def _by_row(name: str, weight: Tensor, scale: Tensor, path: Path) -> Tensor:
    shape, count = tuple(scale.shape), weight.shape[0] if weight.ndim else 1
    if scale.element_size() == 1 and scale.numel() > 1:
        raise refusal("mxfp8 or another type with a scale per block", name, path)
    if scale.numel() != 1 and shape not in ((count,), (count, 1)):
        if scale.ndim == weight.ndim == 2 and not any(map(mod, weight.shape, shape)):
            raise refusal("8 bits with a scale per block", name, path)
        raise CheckpointError(
            "a scale does not fit its weight",
            received=f"the scale of {name} in {path}: shape {shape}",
            allowed=f"(), (1,), ({count},) or ({count}, 1)",
            remedy="The file is damaged.",
        )
    values = scale.float()
    if not scale.is_floating_point() or not bool((values.isfinite() & (values >= 0)).all()):
        raise CheckpointError(
            "a scale is negative, not finite or of the wrong type",
            received=f"the scale of {name} in {path}: {scale.dtype}, {values.min():g} to {values.max():g}",
            remedy="The file is damaged. Download it again.",
        )
    return values.reshape(-1, 1).expand(count, 1).contiguous()
