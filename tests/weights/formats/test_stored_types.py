"""Quantised files of other programs become the layers that they stand for."""

import base64
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.weights.formats.containers import open_file
from talkinghead_lab.weights.formats.stored_types import combined

E5M2 = torch.float8_e5m2
# Largest relative error of a normal fp8 value: half of its last bit.
LAST_BIT = {FP8: 2**-4, E5M2: 2**-3}


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def read(tmp_path):
    """Write tensors, and a map of quanto beside them, and read what they stand for."""

    def written(
        tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, kinds: dict | None = None
    ):
        path = tmp_path / "a.safetensors"
        save_file(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
            path,
            metadata,
        )
        if kinds is not None:
            path.with_suffix(".json").write_text(json.dumps(kinds))
        return combined(open_file(path))

    return written


def scaled(weight: Tensor, stored: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """A weight with one scale for all rows."""
    scale = weight.abs().max() / torch.finfo(stored).max
    return (weight / scale).to(stored), scale


def json_bytes(fields: dict) -> Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def as_base64(fields: object) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


@pytest.mark.parametrize("stored", [FP8, E5M2])
def test_raw_fp8_is_multiplied_by_1(read, weight, stored):
    tensors = read({"0.weight": weight.to(stored), "0.bias": torch.ones(4, dtype=torch.bfloat16)})
    layer = tensors["0.weight"]
    assert isinstance(layer, RowQuantizedLinear)
    assert layer.shape == (4, 8)
    assert layer.stored_as == {FP8: "fp8", E5M2: "fp8 (e5m2)"}[stored]
    assert torch.equal(layer.dequantized(), weight.to(stored).float())
    assert torch.equal(layer.scale, torch.ones(4, 1))
    assert not layer.full_precision
    assert tensors["0.bias"].dtype is torch.bfloat16


@pytest.mark.parametrize("stored", [FP8, E5M2])
def test_fp8_tensors_that_are_no_matrices_keep_every_value(read, stored):
    every_value = torch.arange(256, dtype=torch.uint8).view(stored)
    finite = every_value[every_value.float().isfinite()]
    shapes = {"norm.weight": (-1,), "conv.weight": (1, -1, 1, 2), "modulation": (1, 1, -1), "proj": (2, -1)}
    found = read({name: finite.view(shape) for name, shape in shapes.items()})
    for name, shape in shapes.items():
        assert found[name].dtype is torch.bfloat16
        assert torch.equal(found[name].float(), finite.float().view(shape))


@pytest.mark.parametrize("elements", [0, 1, 2])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_scaled_fp8_of_comfyui(read, weight, elements, prefix):
    stored, scale = scaled(weight)
    tensors = read(
        {
            f"{prefix}0.weight": stored,
            f"{prefix}0.scale_weight": scale.view(1) if elements else scale,
            f"{prefix}0.scale_input": torch.tensor(0.5),
            f"{prefix}norm.weight": torch.ones(4),
            f"{prefix}scaled_fp8": torch.zeros(elements, dtype=FP8),
        }
    )
    assert tensors.keys() == {f"{prefix}0.weight", f"{prefix}norm.weight"}
    layer = tensors[f"{prefix}0.weight"]
    assert torch.equal(layer.dequantized(), stored.float() * scale)
    assert (layer.dequantized() - weight).abs().max() <= weight.abs().max() * LAST_BIT[FP8]
    assert (layer.scale.shape, layer.scale.dtype) == ((4, 1), torch.float32)
    assert layer.full_precision is (elements == 2)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
@pytest.mark.parametrize("stored", [FP8, E5M2, torch.int8])
@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16])
def test_scales_of_a_matrix_or_of_rows(read, weight, shape, stored, scale_type):
    """`weight_scale` as LightX2V ([out, 1]) and ComfyUI write it."""
    data, scale = quantize_rows(weight, stored)
    scale = scale.to(scale_type).view(shape) if len(shape) and shape[0] == 4 else scale[0].view(shape)
    layer = read({"0.weight": data, "0.weight_scale": scale})["0.weight"]
    assert torch.equal(layer.dequantized(), data.float() * scale.float().reshape(-1, 1))


def test_a_scaled_convolution_is_dequantised(read):
    weight = torch.ones(2, 3, 1, 1).to(FP8)
    found = read({"0.weight": weight, "0.weight_scale": torch.tensor([0.5, 3.0])})["0.weight"]
    assert torch.equal(found, torch.tensor([0.5, 3.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))


@pytest.mark.parametrize("where", ["header", "tensor"])
@pytest.mark.parametrize("full", [True, False])
def test_formats_of_layers_of_comfyui(read, weight, where, full):
    said = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if full else {})
    stored, scale = scaled(weight)
    tensors = {"a.0.weight": stored, "a.0.weight_scale": scale, "a.1.weight": weight}
    if where == "header":
        header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"a.0": said}})}
        found = read(tensors, header)
    else:
        found = read(tensors | {"a.0.comfy_quant": json_bytes(said)})
    assert found.keys() == {"a.0.weight", "a.1.weight"}
    assert found["a.0.weight"].full_precision is full
    assert torch.equal(found["a.1.weight"], weight)


def test_int8_with_one_scale_of_comfyui(read, weight):
    scale = weight.abs().max() / 127
    said = json_bytes({"format": "int8_tensorwise"})
    tensors = {"0.weight": (weight / scale).round().to(torch.int8), "0.weight_scale": scale}
    layer = read(tensors | {"0.comfy_quant": said})["0.weight"]
    assert layer.stored_as == "int8"
    assert (layer.dequantized() - weight).abs().max() <= scale / 2


@pytest.mark.parametrize("where", ["beside", "mmgp", "header"])
@pytest.mark.parametrize(
    ("kind", "stored", "error"),
    [("qint8", torch.int8, 1 / 254), ("qfloat8_e4m3fn", FP8, 1 / 16), ("qfloat8_e5m2", E5M2, 1 / 8)],
)
def test_a_map_of_quanto(read, weight, where, kind, stored, error, tmp_path):
    data, scale = quantize_rows(weight, stored)
    tensors = {"0.weight._data": data, "0.weight._scale": scale.bfloat16(), "0.input_scale": torch.ones(())}
    kinds = {"0": {"weights": kind, "activations": "none"}, "1": {"weights": "none"}}
    header = {"quantization_format": "quanto", "quantization_map_base64": as_base64(kinds)}
    if where == "mmgp":
        (tmp_path / "a_map.json").write_text(json.dumps(kinds))
    found = read(tensors, header if where == "header" else None, kinds if where == "beside" else None)
    assert found.keys() == {"0.weight"}
    assert isinstance(found["0.weight"], RowQuantizedLinear)
    assert found["0.weight"].weight.dtype is stored
    rounded = 2**-8  # of the scales in bf16
    assert (found["0.weight"].dequantized() - weight).abs().max() < weight.abs().max() * (error + rounded)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"nothing": {"weights": "qint8"}}, "no such quantised layer"),
        ({"0": {"weights": "qint4"}}, "layer 0 is not supported.*qint4"),
        ({"0": {"weights": "qint8", "activations": "qint8"}}, "not supported"),
        ({"0": {"weights": "qfloat8"}}, "no such quantised layer"),
        (None, "optimum-quanto without its map.*0.weight._"),
    ],
)
def test_an_unsupported_map_is_an_error(read, weight, kinds, message):
    data, scale = quantize_rows(weight, torch.int8)
    with pytest.raises(CheckpointError, match=message):
        read({"0.weight._data": data, "0.weight._scale": scale}, kinds=kinds)


@pytest.mark.parametrize(
    "encoded", ["not base64!", base64.b64encode(b"[1]").decode(), as_base64({"0": "qint8"})]
)
def test_a_damaged_map_in_the_header_is_an_error(read, weight, encoded):
    with pytest.raises(CheckpointError, match=r"quantization_map_base64|layer 0"):
        read({"0.weight": weight}, {"quantization_map_base64": encoded})


BYTES = torch.zeros(4, 4, dtype=torch.uint8)
INT32 = torch.zeros(4, 4, dtype=torch.int32)
ROW = torch.ones(4, 1)
REFUSED = {
    "nvfp4 of ComfyUI": (
        {"0.weight": BYTES, "0.weight_scale": torch.ones(4, 2).to(FP8), "0.weight_scale_2": ROW[0]},
        r"nvfp4.*0\.weight_scale_2",
    ),
    "nvfp4 of LightX2V": (
        {"0.weight": BYTES, "0.weight_scale": torch.ones(4, 2).to(FP8), "0.weight_global_scale": ROW[0]},
        r"nvfp4.*0\.weight_global_scale",
    ),
    "packed": ({"0.weight": BYTES}, r"packed bytes.*0\.weight"),
    "packed with scales": ({"0.weight": BYTES, "0.weight_scale": ROW}, r"packed bytes.*0\.weight"),
    "mxfp8": (
        {"0.weight": torch.ones(4, 8).to(FP8), "0.weight_scale": torch.ones(4, 2, dtype=torch.uint8)},
        r"scale per block.*0\.weight",
    ),
    "fp8 by block": (
        {"0.weight": torch.ones(4, 8).to(FP8), "0.weight_scale": torch.ones(2, 2)},
        r"scale per block.*0\.weight",
    ),
    "fp8 by block of DeepSeek": (
        {"0.weight": torch.ones(4, 8).to(FP8), "0.weight_scale_inv": torch.ones(2, 2)},
        r"scale per block.*0\.weight_scale_inv",
    ),
    "nunchaku": (
        {"0.qweight": torch.zeros(4, 4, dtype=torch.int8), "0.wscales": ROW, "0.smooth_factor": ROW},
        r"nunchaku.*0\.smooth_factor",
    ),
    "bitsandbytes": (
        {"0.weight": BYTES, "0.weight.absmax": ROW, "0.weight.quant_state.bitsandbytes__nf4": BYTES},
        r"bitsandbytes.*0\.weight\.absmax",
    ),
    "GPTQ": ({"0.qweight": INT32, "0.qzeros": INT32, "0.scales": ROW}, r"AWQ or GPTQ.*0\.qweight"),
    "int8 without scale": ({"0.weight": torch.ones(4, 4, dtype=torch.int8)}, r"int8 without.*0\.weight"),
    "formats of ComfyUI": (
        {"0.weight": BYTES, "0.comfy_quant": json_bytes({"format": "mxfp8"})},
        "stored as mxfp8.*0 in",
    ),
    "rotated": (
        {
            "0.weight": torch.ones(4, 4, dtype=torch.int8), "0.weight_scale": ROW,
            "0.comfy_quant": json_bytes({"format": "int8_tensorwise", "convrot": True}),
        },
        "ConvRot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_types_are_named_with_what_to_use_instead(read, kind):
    tensors, message = REFUSED[kind]
    with pytest.raises(CheckpointError, match=message) as error:
        read(tensors)
    assert "Use the same model in" in str(error.value)


ONE = torch.ones(4, 8).to(FP8)
MARKED = {"scaled_fp8": torch.zeros(1).to(FP8)}
SAID = json_bytes({"format": "float8_e4m3fn"})
DAMAGED = {
    "infinite": ({"0.weight": ONE, "0.weight_scale": torch.tensor(float("inf"))}, "not finite.*0.weight"),
    "no number": ({"0.weight": ONE, "0.scale_weight": ROW * float("nan")}, "not finite.*0.weight"),
    "negative": ({"0.weight": ONE, "0.weight_scale": -ROW}, "negative.*0.weight"),
    "integer": ({"0.weight": ONE, "0.weight_scale": ROW.int()}, "wrong type.*0.weight"),
    "too many": ({"0.weight": ONE, "0.weight_scale": torch.ones(5)}, r"not fit.*0\.weight.*\(5,\).*\(4, 1\)"),
    "by column": ({"0.weight": ONE, "0.weight_scale": torch.ones(8)}, "does not fit.*0.weight"),
    "no weight": ({"0.bias": ROW[0], "0.weight_scale": ROW}, "no 8-bit weight.*0.weight_scale"),
    "no 8 bits": ({"0.weight": ONE.float(), "0.scale_weight": 2 * ROW}, "no 8-bit weight.*0.scale_weight"),
    "two": ({"0.weight": ONE, "0.weight_scale": ROW, "0.scale_weight": ROW}, "two scales"),
    "marked, without": ({"0.weight": ONE, **MARKED}, "not stored as the file says.*0.weight.*no scale"),
    "said, without": ({"0.weight": ONE, "0.comfy_quant": SAID}, "not stored as.*0.weight.*no scale"),
    "another type": (
        {"0.weight": ONE.float().to(E5M2), "0.weight_scale": ROW, "0.comfy_quant": SAID},
        "not stored as.*e5m2.*allowed: torch.float8_e4m3fn",
    ),
    "said, no layer": ({"0.bias": ROW[0], "1.comfy_quant": SAID}, "does not hold.*1 in"),
    "said, plain": ({"0.weight": ONE.float(), "0.comfy_quant": SAID}, "does not hold.*0 in"),
    "no JSON": ({"0.weight": ONE, "0.comfy_quant": torch.ones(3, dtype=torch.uint8)}, "JSON.*0.comfy_quant"),
    "no bytes": ({"0.weight": ONE, "0.comfy_quant": torch.ones(3)}, "JSON.*0.comfy_quant"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_scales_that_cannot_be_right_are_errors_that_name_them(read, kind):
    tensors, message = DAMAGED[kind]
    with pytest.raises(CheckpointError, match=message):
        read(tensors)


@pytest.mark.parametrize("header", ["{", "[]", '{"layers": 3}', '{"layers": {"0": [1]}}'])
def test_a_damaged_header_is_an_error(read, weight, header):
    with pytest.raises(CheckpointError):
        read({"0.weight": weight}, {"_quantization_metadata": header})


def test_scales_of_1_for_plain_weights_change_nothing(read, weight):
    found = read(
        {"0.weight": weight.bfloat16(), "0.scale_weight": torch.ones(1), "1.scale_input": torch.ones(1)}
    )
    assert found.keys() == {"0.weight", "1.scale_input"}
    assert torch.equal(found["0.weight"], weight.bfloat16())


def test_plain_types_stay_as_they_are(read, weight):
    """As the adapter that is stored in fp16, with norms, biases and `audio_proj` in fp32."""
    stored = {"0.weight": weight.half(), "0.bias": weight[0], "1.weight": weight.bfloat16(), "2": SAID}
    found = read(stored)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in stored.items()
    }


def test_reading_maps_the_file_and_reads_no_matrix(read, weight):
    layer = read({"0.weight": weight.to(FP8), "0.weight_scale": ROW})["0.weight"]
    start = layer.weight.data_ptr()
    ranges = [
        [int(bound, 16) for bound in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("a.safetensors")
    ]
    assert any(low <= start < high for low, high in ranges)
