"""Quantise linear layers to 8 bits, and choose what they multiply in.

int8 is weight-only: matmuls are in the input's type. With fp8, matmuls are in fp8 if the GPU supports it.
"""

import logging
import re
from collections.abc import Collection, Iterable

import torch
from torch import nn

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import capability
from talkinghead_lab.models.kernels.fp8 import E5M2, FP8
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.weights.reading import replace_module

logger = logging.getLogger(__name__)

PRECISION_TYPES = {"fp8": FP8, "int8": torch.int8}
PLAIN_TYPES = ("float32", "float16", "bfloat16")
# Compute capability of the first GPUs with fp8 matmuls (Ada); row-wise scales need it, too.
FIRST_FP8_CAPABILITY = (8, 9)

# Layers of a block whose quantisation costs the most precision, because their branches have no gate. They
# store int8, which is more precise, and compute in the input's type. That slows down only one of them, the
# output layer of the cross-attention to text and image: the others run once per chunk, or are folded into it.
INT8_LAYERS = re.compile(r"cross_attn\.(?!q(?:\.base)*$)")


def quantize_linears(module: nn.Module, stored: torch.dtype) -> None:
    """Quantise every linear layer of `module`, one at a time; `INT8_LAYERS` always become int8."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            layer_type = torch.int8 if INT8_LAYERS.search(name) else stored
            weight, scale = quantize_rows(layer.weight.detach(), layer_type)
            replace_module(
                module,
                name,
                RowQuantizedLinear(weight, scale, None if layer.bias is None else layer.bias.data),
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


def check_stored(precision: str, stored: Iterable[str]) -> None:
    """Refuse a `precision` that asks for an 8-bit type of weights which are stored in another one.

    Args:
        precision: of the request.
        stored: types that the transformer's files hold.

    Raises:
        InvalidRequest: they would have to be quantised twice.
    """
    kinds = [kind for kind in stored if kind not in PLAIN_TYPES]
    others = [kind for kind in kinds if not kind.startswith(precision)]
    as_quantized_here = precision == "fp8" and others == ["int8"] and len(kinds) > 1  # see `INT8_LAYERS`
    if precision in PRECISION_TYPES and others and not as_quantized_here:
        raise InvalidRequest(
            "`precision` asks for another type than these weights are stored in",
            received=f"{precision} for weights in {', '.join(others)}",
            allowed="auto, bf16, fp32: weights stay as they are stored",
            remedy=f"For {precision}, use weights in bf16, fp16, fp32 or {precision}.",
            field="precision",
        )


def has_fp8(device: torch.device) -> bool:
    """Whether a device is a GPU with fp8 matmuls."""
    return capability(device) >= FIRST_FP8_CAPABILITY


def fp8_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types of fp8 weights that a device multiplies with tokens in e4m3, both scaled by rows.

    e5m2 is tried on a small matmul: whether it is there depends on GPU and library.
    """
    if not has_fp8(device):
        return ()
    tokens, scale = torch.ones(16, 16, device=device), torch.ones(16, 1, device=device)
    layer = RowQuantizedLinear(tokens.to(E5M2), scale)
    layer.uses_fp8_matmul = True
    try:
        works = bool((layer(tokens) == 16).all())
    except RuntimeError:
        works = False
    return (FP8, E5M2) if works else (FP8,)


def allows_fp8_matmuls(precision: str, device: torch.device) -> bool:
    """Whether layers stored in fp8 multiply in fp8: where a GPU can, unless `precision` asks for more."""
    return precision not in ("fp32", "bf16") and has_fp8(device)


def multiply_fp8(module: nn.Module, stored: Collection[torch.dtype] = (FP8,)) -> int:
    """Switch the layers of `module` with these `stored` types to fp8 matmuls; returns their number.

    `INT8_LAYERS` that a file stores in fp8 keep computing in the input's type, as do layers of which the file
    demands it.
    """
    layers = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, RowQuantizedLinear)
        and layer.weight.dtype in stored
        and not layer.full_precision
        and not INT8_LAYERS.search(name)
    ]
    for layer in layers:
        layer.uses_fp8_matmul = True
    return len(layers)
