"""Stored types that this package does not compute with, known by the names and types of tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.containers import Stored

INSTEAD = (
    "Use the same model in bf16, fp16, fp8 (raw, or with a scale per matrix or row), int8 by rows, "
    "or GGUF Q8_0 to Q4_K."
)
# Ends of names that only one kind of file has; the first kind that fits is named.
SIGNS = {
    "nunchaku (SVDQuant, 4 bits)": (".wscales", ".wcscales", ".wtscale", ".smooth_factor", ".proj_down"),
    "bitsandbytes (NF4, FP4 or int8)": (".absmax", ".quant_map", ".SCB"),
    "AWQ or GPTQ (4 bits)": (".qzeros", ".qweight", ".weight_zeros"),
    "nvfp4": (".weight_scale_2", ".weight_global_scale", ".input_global_scale"),
    "asymmetric 4-bit groups": (".weight_s_rel", ".weight_codebook"),
    "fp8 with a scale per block": (".weight_scale_inv",),
    "optimum-quanto without its map of layers": ("._data", "._scale", "._zeropoint", "._shift"),
}  # fmt: skip


def refusal(kind: str, name: str, path: Path) -> CheckpointError:
    """The error for a tensor or layer that is stored as `kind`."""
    return CheckpointError(
        f"weights stored as {kind} are not supported", received=f"{name} in {path}", remedy=INSTEAD
    )


def check_names(tensors: Mapping[str, Stored], path: Path) -> None:
    """Refuse files whose names of tensors show an unsupported type.

    Raises:
        CheckpointError: it names the type and the first tensor of it.
    """
    for kind, ends in SIGNS.items():
        for name in tensors:
            if name.endswith(ends):
                raise refusal(kind, name, path)


def check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that is not part of a known quantised matrix, yet not in a plain type.

    Raises:
        CheckpointError: an 8-bit type without its scale, or bytes that pack several weights.
    """
    if tensor.dtype is torch.int8:
        raise refusal("int8 without a scale", name, path)
    if tensor.is_floating_point() and tensor.element_size() == 1:
        raise refusal(str(tensor.dtype).removeprefix("torch."), name, path)
    if name.endswith(".weight") and tensor.dtype is torch.uint8:
        raise refusal("packed bytes (nvfp4, fp4 or int4)", name, path)
