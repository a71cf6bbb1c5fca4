"""GGUF files of small networks, written by the package `gguf`."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear

# Bytes of a block at which its float16 scales start.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2)}
HALVES |= {"Q6_K": (208,)}


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Random bytes [rows, bytes per row] with normally distributed scales."""
    block, generator = BLOCK_TYPES[kind], np.random.default_rng(seed)
    stored = generator.integers(0, 256, (rows * width // block.weights, block.nbytes), dtype=np.uint8)
    for start in HALVES.get(kind, (0,)):
        scales = generator.normal(size=(len(stored), 1)).astype(np.float16)
        stored[:, start : start + 2] = scales.view(np.uint8)
    return stored.reshape(rows, -1)


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str = "F32", **metadata: str) -> Path:
    """Write tensors: matrices quantised to `kind` where their rows fill its blocks, others in float32."""
    writer = gguf.GGUFWriter(path, "wan")
    for key, value in metadata.items():
        writer.add_string(key, value)
    for name, tensor in tensors.items():
        values = tensor.detach().float().numpy()
        if kind != "F32" and tensor.dim() == 2 and tensor.shape[1] % BLOCK_TYPES[kind].weights == 0:
            stored_as = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, stored_as), raw_dtype=stored_as)
        else:
            writer.add_tensor(name, values)
    finish(writer)
    return path


def quantized(layer: nn.Linear, kind: str) -> BlockQuantizedLinear:
    """A linear layer quantised by the package `gguf`, which can write Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0."""
    stored = gguf.quants.quantize(layer.weight.detach().float().numpy(), gguf.GGMLQuantizationType[kind])
    return BlockQuantizedLinear(torch.from_numpy(stored), kind, layer.bias)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantized(stored: np.ndarray, kind: str) -> Tensor:
    """What the package `gguf` makes of stored bytes."""
    return torch.from_numpy(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]))
