"""Multiply layers of a weight file on the device that is to run them: names and shapes do not show all."""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.formats.containers import Stored
from talkinghead_lab.weights.quantization import multiply_fp8

PLAIN = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
TOKENS = 16  # of the random input
# Rows of a layer that are read: as many as fit into these bytes, in steps that fp8 matmuls accept.
LAYER_BYTES, ROW_STEP = 2**22, 16
# Of every kind one layer is read, and more, from the smallest on, up to these bytes of a file. Small files
# are read whole.
FILE_BYTES = 2**26
# Relative errors of a product whose inputs are quantised, to fp8 or to the type of the computation. Measured:
# 3 % for fp8, 0.3 % for bf16. Wrong scales or names are off by far more.
FP8_ERROR = 0.1
ERRORS = {torch.float32: 0.005, torch.float16: 0.01, torch.bfloat16: 0.02}  # TF32 counts as float32


def kind_of(stored: Stored) -> str:
    """How a tensor is stored, in words: the type, and whether it is a quantised layer or a plain tensor."""
    if isinstance(stored, QuantizedLinear):
        return f"{stored.stored_as} layer"
    return f"{PLAIN.get(stored.dtype, str(stored.dtype).removeprefix('torch.'))} tensor"


def multiply_layers(
    tensors: Mapping[str, Stored],
    source: str,
    compute: torch.dtype,
    device: torch.device,
    fp8_matmuls: bool = False,
) -> float:
    """Multiply layers of every kind with random inputs; returns the largest relative error of a product.

    Args:
        tensors: of a network, as stored.
        source: the file, for errors.
        compute: type of the products; the reference is the dequantised weight in float32 on the CPU.
        device: that multiplies.
        fp8_matmuls: whether fp8 layers of blocks multiply in fp8.

    Raises:
        CheckpointError: a layer holds NaN or infinity, cannot be multiplied or gives another result; the
            error names it.
    """
    largest, read, kinds = 0.0, 0, set()
    for name, stored in sorted(tensors.items(), key=lambda item: _nbytes(item[1])):
        kind = kind_of(stored), len(stored.shape)
        part = _rows(stored)
        if kind in kinds and read + _nbytes(part) > FILE_BYTES:
            continue
        kinds.add(kind)
        read += _nbytes(part)
        try:
            in_fp8 = fp8_matmuls and name.startswith("blocks.")
            largest = max(largest, _error(name, part, compute, device, in_fp8))
        except CheckpointError as problem:
            raise CheckpointError(
                f"`{name}` {problem.problem}",
                received=f"{kind[0]} of {source}",
                remedy=problem.remedy,
            ) from None
        except Exception as error:  # each device and library has errors of its own
            raise CheckpointError(
                f"`{name}` cannot be multiplied on {device}",
                received=f"{kind[0]} of {source}: {str(error)[:200]}",
                remedy="Use a file of another stored type, or another device.",
            ) from error
    return largest


def _nbytes(stored: Stored) -> int:
    tensors = [stored] if isinstance(stored, Tensor) else stored.buffers()
    return sum(tensor.nbytes for tensor in tensors)


def _rows(stored: Stored) -> Stored:
    """The first rows of a large layer; nothing is read."""
    rows = stored.shape[0] if len(stored.shape) > 1 else 1
    wanted = max(1, LAYER_BYTES * rows // max(1, _nbytes(stored)) // ROW_STEP) * ROW_STEP
    if wanted >= rows:
        return stored if isinstance(stored, Tensor) else _with(stored, dict(stored.named_buffers()))
    if isinstance(stored, Tensor):
        return stored[:wanted]
    return _with(stored, {name: part[:wanted] for name, part in stored.named_buffers()})


def _with(layer: QuantizedLinear, buffers: Mapping[str, Tensor]) -> QuantizedLinear:
    """A copy of a layer with other bytes: the original is the file's."""
    copied = copy.copy(layer)
    copied._buffers = dict(buffers)
    return copied


def _error(name: str, stored: Stored, compute: torch.dtype, device: torch.device, in_fp8: bool) -> float:
    if isinstance(stored, Tensor) and not stored.is_floating_point():
        return 0.0
    weight = stored.float() if isinstance(stored, Tensor) else stored.dequantized()
    if not bool(weight.isfinite().all()):
        raise CheckpointError(
            "holds NaN or infinity", remedy="The file is damaged or was converted wrongly. Download it again."
        )
    if not name.endswith(".weight") or weight.ndim < 2:
        return 0.0
    shape = (TOKENS, weight.shape[1], *weight.shape[2:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(compute)
    reference = _product(x.float(), weight)
    if isinstance(stored, Tensor):
        found = _product(x.to(device), stored.to(device, compute))
        return _difference(found, reference, ERRORS[compute])
    layer = nn.Sequential(_with(stored, {n: part.to(device) for n, part in stored.named_buffers()}))
    error = _difference(layer(x.to(device)), reference, ERRORS[compute])
    if in_fp8 and multiply_fp8(layer):
        error = max(error, _difference(layer(x.to(device)), reference, FP8_ERROR))
    return error


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """A linear layer of a matrix; a convolution of an input as large as its kernel."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim](x, weight)


def _difference(found: Tensor, reference: Tensor, allowed: float) -> float:
    found = found.float().cpu()
    if not bool(found.isfinite().all()):
        raise CheckpointError("overflows when it is multiplied", remedy="Use a file in another type.")
    error = float((found - reference).norm() / reference.norm().clamp(min=torch.finfo(torch.float32).tiny))
    if error > allowed:
        raise CheckpointError(
            f"multiplies wrongly: {error:.1%} off", remedy="Use a file of another stored type, or the CPU."
        )
    return error
