"""Eight-bit linear layers, made here or read from released quantised checkpoints.

int8 is storage alone: it is multiplied in the input's type. fp8 is multiplied in fp8 where the GPU can.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.dit.quantized_linear import QuantizedLinear, quantize_rows
from talkinghead_lab.models.kernels.fp8 import FP8

logger = logging.getLogger(__name__)

PRECISION_TYPES = {"fp8": FP8, "int8": torch.int8}
# The first GPUs that multiply fp8 (Ada); rows of their own scale need it too.
FIRST_FP8_CAPABILITY = (8, 9)
# Names that the released `.json` maps use (optimum-quanto) and what they store.
RELEASED_TYPES = {"qint8": torch.int8, "qfloat8_e4m3fn": FP8, "qfloat8": FP8}

# Layers of a block whose rounding costs the most precision, since their branches have no gate. They store
# int8, which is nearer, and multiply in the input's type. Only one of them, the output of attention to text
# and picture, is slower for it: the others multiply what is made once a chunk, or are folded into it.
INT8_LAYERS = re.compile(r"cross_attn\.(?!q$)")


def quantize_linears(module: nn.Module, stored: torch.dtype) -> None:
    """Replace every linear layer below `module` by a quantised one, one at a time; see `INT8_LAYERS`."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            nearest = torch.int8 if INT8_LAYERS.search(name) else stored
            weight, scale = quantize_rows(layer.weight.detach(), nearest)
            replace_module(
                module, name, QuantizedLinear(weight, scale, None if layer.bias is None else layer.bias.data)
            )


def stored_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that `precision` stores linear weights in, None where it does not quantise.

    A GPU that does not multiply fp8 gets int8: as small, and nearer to the trained weights.
    """
    stored = PRECISION_TYPES.get(precision)
    if stored is FP8 and device.type == "cuda" and not has_fp8(device):
        logger.warning(
            "%s does not multiply fp8: weights are stored as int8", torch.cuda.get_device_name(device)
        )
        return torch.int8
    return stored


def has_fp8(device: torch.device) -> bool:
    """Whether a device is a GPU that multiplies fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_FP8_CAPABILITY


def multiply_fp8(module: nn.Module) -> int:
    """Let the layers below `module` that store fp8 also multiply in fp8; returns how many do.

    Those of released fp8 checkpoints that are `INT8_LAYERS` are multiplied in the input's type.
    """
    layers = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedLinear) and layer.weight.dtype is FP8 and not INT8_LAYERS.search(name)
    ]
    for layer in layers:
        layer.uses_fp8_matmul = True
    return len(layers)


def prepare_for_quantized(module: nn.Module, quantization_map: Mapping[str, Any]) -> None:
    """Put quantised layers where a released map says, ready for `load_strict`.

    Raises:
        CheckpointError: the map names no linear layer of this network, or a kind that is not weight-only.
    """
    linears = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for name, kinds in quantization_map.items():
        if name not in linears:
            raise CheckpointError("the quantisation map names a layer that this network lacks", received=name)
        if kinds.get("weights") not in RELEASED_TYPES or kinds.get("activations", "none") != "none":
            raise CheckpointError(
                f"layer {name} is quantised in a way that is not supported",
                received=kinds,
                allowed=f"weights one of {', '.join(RELEASED_TYPES)}; activations none",
            )
        layer = linears[name]
        stored = torch.empty_like(layer.weight, dtype=RELEASED_TYPES[kinds["weights"]])
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
