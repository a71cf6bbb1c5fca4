"""A linear layer with weights in a block type of GGUF."""

import torch
from torch import Tensor

from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES, quantize_q8_0
from talkinghead_lab.models.kernels.optional_kernels import kernels_of
from talkinghead_lab.models.quantized.linear import QuantizedLinear

# Weights that plain PyTorch dequantises at a time; its intermediate results take about 20 bytes for each.
SLICE_WEIGHTS = 2**24


class BlockQuantizedLinear(QuantizedLinear):
    """A linear layer with a `weight` buffer of bytes, uint8 [out, bytes per row], in a block type.

    Args:
        weight: the bytes, as GGUF files store them.
        stored_as: the block type, a name in `BLOCK_TYPES`.
        bias: [out].
    """

    def __init__(self, weight: Tensor, stored_as: str, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self._stored_as = stored_as

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        block = BLOCK_TYPES[self._stored_as]
        return len(self.weight), self.weight.shape[1] // block.nbytes * block.weights

    @property
    def stored_as(self) -> str:
        """The block type, such as `Q4_K`."""
        return self._stored_as

    def dequantized(self) -> Tensor:
        """The weight [out, in] in float32."""
        return self.weight_as(torch.float32)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in the type of a matmul, computed in float32; no float32 copy is made."""
        return _dequantize(self.weight, self._stored_as, dtype)

    def requantized(self, weight: Tensor) -> "BlockQuantizedLinear":
        """The layer with another weight [out, in] in Q8_0; `quantize_q8_0` states the error.

        Types with fewer bits would change a weight that a LoRA was merged into by more than most LoRAs do.
        """
        return BlockQuantizedLinear(quantize_q8_0(weight), "Q8_0", self.bias)


@torch.library.custom_op("talkinghead_lab::dequantize_blocks", mutates_args=())
def _dequantize(stored: Tensor, block_type: str, dtype: torch.dtype) -> Tensor:
    """Bytes [out, bytes per row] → [out, in]; opaque to torch.compile, which would go through float32."""
    if stored.is_cuda and kernels_of(stored.device).runs("dequantize"):
        from talkinghead_lab.models.kernels.triton_dequantize import dequantize

        return dequantize(stored, block_type, dtype)
    return _by_slices(stored, block_type, dtype)


@_dequantize.register_fake
def _(stored: Tensor, block_type: str, dtype: torch.dtype) -> Tensor:
    block = BLOCK_TYPES[block_type]
    return stored.new_empty(len(stored), stored.shape[1] // block.nbytes * block.weights, dtype=dtype)


def _by_slices(stored: Tensor, block_type: str, dtype: torch.dtype) -> Tensor:
    block = BLOCK_TYPES[block_type]
    width = stored.shape[1] // block.nbytes * block.weights
    out = stored.new_empty(len(stored), width, dtype=dtype)
    rows = max(1, SLICE_WEIGHTS // width)
    for target, source in zip(out.split(rows), stored.split(rows), strict=True):
        target.copy_(block.dequantize(source))
    return out
