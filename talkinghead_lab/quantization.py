"""Weight-only int8 and fp8 linear layers, made here or read from released quantised checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError

# Names that the released `.json` maps use (optimum-quanto) and what they store.
STORED_TYPES = {"qint8": torch.int8, "qfloat8_e4m3fn": torch.float8_e4m3fn, "qfloat8": torch.float8_e4m3fn}


class QuantizedLinear(nn.Module):
    """A linear layer that stores `weight` [out, in] in eight bits and one `scale` [out, 1] a row.

    Arithmetic is in the input's type: only the storage is quantised.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype).squeeze(-1)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def dequantized(self) -> Tensor:
        return self.weight.float() * self.scale.float()


def quantize_rows(weight: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Symmetric row-wise quantisation of [out, in]: (eight-bit weight, float32 scale [out, 1])."""
    largest = torch.iinfo(stored).max if stored is torch.int8 else torch.finfo(stored).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    scaled = weight.float() / scale
    return (scaled.round() if stored is torch.int8 else scaled).to(stored), scale


def quantize_linears(module: nn.Module, stored: torch.dtype) -> None:
    """Replace every linear layer below `module` by a quantised one, one at a time."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            weight, scale = quantize_rows(layer.weight, stored)
            replace_module(
                module, name, QuantizedLinear(weight, scale, None if layer.bias is None else layer.bias.data)
            )


def prepare_for_quantized(module: nn.Module, quantization_map: Mapping[str, Any]) -> None:
    """Put quantised layers where a released map says, ready for `load_strict`.

    Raises:
        CheckpointError: the map names no linear layer of this network, or a kind that is not weight-only.
    """
    linears = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for name, kinds in quantization_map.items():
        if name not in linears:
            raise CheckpointError("the quantisation map names a layer that this network lacks", received=name)
        if kinds.get("weights") not in STORED_TYPES or kinds.get("activations", "none") != "none":
            raise CheckpointError(
                f"layer {name} is quantised in a way that is not supported",
                received=kinds,
                allowed=f"weights one of {', '.join(STORED_TYPES)}; activations none",
            )
        layer = linears[name]
        stored = torch.empty_like(layer.weight, dtype=STORED_TYPES[kinds["weights"]])
        scale = layer.weight.new_empty(len(layer.weight), 1)
        replace_module(module, name, QuantizedLinear(stored, scale, layer.bias))


def from_released_quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names of quantised tensors → ours; the activation scales of weight-only files are not used."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith((".input_scale", ".output_scale")):
            continue
        renamed[name.replace(".weight._data", ".weight").replace(".weight._scale", ".scale")] = tensor
    return renamed


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place that a dotted name says."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)
