"""Writes plain weights in every 8-bit form that other programs write."""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.models.quantized.rows import quantize_rows

FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
Tensors = dict[str, Tensor]
Written = tuple[Tensors, dict[str, str]]  # tensors and metadata of a file


def matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    """Layers of the blocks, and the text embedding: what these programs quantise."""
    names = [name for name in tensors if name.startswith(("blocks.", "text_embedding."))]
    return [name.removesuffix(".weight") for name in names if tensors[name].ndim == 2 and "weight" in name]


def raw(stored: torch.dtype, everything: bool = False) -> Callable[[Tensors], Written]:
    """A plain cast, of the matrices or of every tensor."""

    def written(tensors: Tensors) -> Written:
        chosen = tensors if everything else {f"{layer}.weight" for layer in matrices(tensors)}
        return {n: t.to(stored) if n in chosen else t for n, t in tensors.items()}, {}

    return written


def scaled(elements: int, stored: torch.dtype = FP8) -> Callable[[Tensors], Written]:
    """One scale for a matrix and a marker, as ComfyUI wrote it first."""

    def written(tensors: Tensors) -> Written:
        out = dict(tensors) | {"scaled_fp8": torch.zeros(elements, dtype=stored)}
        for layer in matrices(tensors):
            out[f"{layer}.weight"], scale = _one_scale(tensors[f"{layer}.weight"], stored)
            out[f"{layer}.scale_weight"], out[f"{layer}.scale_input"] = scale, torch.ones(())
        return out, {}

    return written


def _one_scale(weight: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().max() / torch.finfo(stored).max
    return (weight.float() / scale).to(stored), scale


def by_row(stored: torch.dtype) -> Callable[[Tensors], Written]:
    """A scale per row, as LightX2V writes it."""

    def written(tensors: Tensors) -> Written:
        out = dict(tensors)
        for layer in matrices(tensors):
            weight = f"{layer}.weight"
            out[weight], out[f"{weight}_scale"] = quantize_rows(tensors[weight], stored)
        return out, {}

    return written


def described(in_header: bool) -> Callable[[Tensors], Written]:
    """One scale for a matrix, and the format of each layer, as ComfyUI writes it now."""

    def written(tensors: Tensors) -> Written:
        out, formats = dict(tensors), {}
        for layer in matrices(tensors):
            out[f"{layer}.weight"], out[f"{layer}.weight_scale"] = _one_scale(tensors[f"{layer}.weight"], FP8)
            formats[layer] = {"format": "float8_e4m3fn"}
        if in_header:
            return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": formats})}
        for layer, said in formats.items():
            out[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        return out, {}

    return written


def quanto(kind: str, stored: torch.dtype) -> Callable[[Tensors], Written]:
    """optimum-quanto with its map in the header, as Wan2GP writes its modules."""

    def written(tensors: Tensors) -> Written:
        out, kinds = dict(tensors), {}
        for layer in matrices(tensors):
            data, scale = quantize_rows(out.pop(f"{layer}.weight"), stored)
            out[f"{layer}.weight._data"], out[f"{layer}.weight._scale"] = data, scale.bfloat16()
            kinds[layer] = {"weights": kind, "activations": "none"}
        encoded = base64.b64encode(json.dumps(kinds).encode()).decode()
        return out, {"quantization_format": "quanto", "quantization_map_base64": encoded}

    return written


# Each form, and the bound of the bundled model's relative error with it: 3 bits of mantissa, 2, or int8.
FORMS: dict[str, tuple[Callable[[Tensors], Written], float]] = {
    "raw e4m3": (raw(FP8), 0.12),
    "raw e4m3, every tensor": (raw(FP8, everything=True), 0.14),
    "raw e5m2": (raw(E5M2), 0.24),
    "scaled e4m3": (scaled(1), 0.12),
    "scaled e4m3, full precision": (scaled(2), 0.12),
    "scaled e5m2": (scaled(0, E5M2), 0.24),
    "rows e4m3": (by_row(FP8), 0.12),
    "rows int8": (by_row(torch.int8), 0.03),
    "described in tensors": (described(in_header=False), 0.12),
    "described in the header": (described(in_header=True), 0.12),
    "quanto int8": (quanto("qint8", torch.int8), 0.03),
    "quanto fp8": (quanto("qfloat8_e4m3fn", FP8), 0.12),
}


def write(path: Path, tensors: Mapping[str, Tensor], form: str) -> None:
    """Write tensors in one of `FORMS`."""
    written, metadata = FORMS[form][0](dict(tensors))
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, path, metadata)
