"""8-bit linear layers, quantised here or read from released quantised checkpoints.

int8 is weight-only: matmuls are in the input's type. With fp8, matmuls are in fp8 if the GPU supports it.
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
# Compute capability of the first GPUs with fp8 matmuls (Ada); row-wise scales need it, too.
FIRST_FP8_CAPABILITY = (8, 9)
# Stored types by their names in the released `.json` maps (optimum-quanto).
RELEASED_TYPES = {"qint8": torch.int8, "qfloat8_e4m3fn": FP8, "qfloat8": FP8}

# Layers of a block whose quantisation costs the most precision, because their branches have no gate. They
# store int8, which is more precise, and compute in the input's type. That slows down only one of them, the
# output layer of the cross-attention to text and image: the others run once per chunk, or are folded into it.
INT8_LAYERS = re.compile(r"cross_attn\.(?!q$)")


def quantize_linears(module: nn.Module, stored: torch.dtype) -> None:
    """Quantise every linear layer of `module`, one at a time; `INT8_LAYERS` always become int8."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            layer_type = torch.int8 if INT8_LAYERS.search(name) else stored
            weight, scale = quantize_rows(layer.weight.detach(), layer_type)
            replace_module(
                module, name, QuantizedLinear(weight, scale, None if layer.bias is None else layer.bias.data)
            )


def stored_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The stored type of linear weights for a `precision`; None if it does not quantise.

    A GPU without fp8 matmuls gets int8, which has the same size and is closer to the trained weights.
    """
    stored = PRECISION_TYPES.get(precision)
    if stored is FP8 and device.type == "cuda" and not has_fp8(device):
        logger.warning(
            "%s has no fp8 matmuls: weights are stored as int8", torch.cuda.get_device_name(device)
        )
        return torch.int8
    return stored


def has_fp8(device: torch.device) -> bool:
    """Whether a device is a GPU with fp8 matmuls."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_FP8_CAPABILITY


def multiply_fp8(module: nn.Module) -> int:
    """Switch the fp8 layers of `module` to fp8 matmuls; returns their number.

    `INT8_LAYERS` that a released fp8 checkpoint stores in fp8 keep computing in the input's type.
    """
    layers = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedLinear) and layer.weight.dtype is FP8 and not INT8_LAYERS.search(name)
    ]
    for layer in layers:
        layer.uses_fp8_matmul = True
    return len(layers)


def insert_quantized_layers(module: nn.Module, quantization_map: Mapping[str, Any]) -> None:
    """Replace the linear layers that a released map names by quantised ones, ready for `load_strict`.

    Raises:
        CheckpointError: the map names an unknown layer, or a quantisation that is not weight-only.
    """
    linears = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for name, kinds in quantization_map.items():
        if name not in linears:
            raise CheckpointError("the quantisation map names a layer that the network lacks", received=name)
        stored_as = kinds.get("weights") if isinstance(kinds, Mapping) else None
        named = isinstance(stored_as, str) and stored_as in RELEASED_TYPES
        if not named or kinds.get("activations", "none") != "none":
            raise CheckpointError(
                f"the quantisation of layer {name} is not supported",
                received=kinds,
                allowed=f"weights one of {', '.join(RELEASED_TYPES)}; activations none",
            )
        layer = linears[name]
        stored = torch.empty_like(layer.weight, dtype=RELEASED_TYPES[kinds["weights"]])
        scale = layer.weight.new_empty(len(layer.weight), 1)
        replace_module(module, name, QuantizedLinear(stored, scale, layer.bias))


def from_released_quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename released quantised tensors to our names; drops activation scales, which are unused here."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith((".input_scale", ".output_scale")):
            continue
        renamed[name.replace(".weight._data", ".weight").replace(".weight._scale", ".scale")] = tensor
    return renamed


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule with a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)
