"""A layer that would not run is told apart from one that would."""

import pytest
import torch
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.block_types import quantize_q8_0
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.weights import layer_checks
from talkinghead_lab.weights.layer_checks import kind_of, multiply_layers

CPU = torch.device("cpu")
FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "tensor",
    [
        *(weight(48, 32).to(kind) for kind in (torch.float32, torch.float16, torch.bfloat16)),
        *(weight(8, 6, *kernel) for kernel in ([10], [3, 3], [3, 3, 3])),
        *(RowQuantizedLinear(*quantize_rows(weight(48, 32), kind)) for kind in (torch.int8, FP8, E5M2)),
        BlockQuantizedLinear(quantize_q8_0(weight(48, 32)), "Q8_0"),
    ],
    ids=lambda tensor: f"{kind_of(tensor)} {tuple(tensor.shape)}",
)
def test_every_kind_of_layer_is_multiplied(tensor):
    assert multiply_layers({"a.weight": tensor}, "f", torch.float32, CPU) < 1e-6
    assert 5e-4 < multiply_layers({"a.weight": tensor}, "f", torch.bfloat16, CPU) < 5e-3


def test_fp8_matmuls_are_tried_where_they_would_run():
    layer = RowQuantizedLinear(*quantize_rows(weight(48, 32), FP8))
    errors = [
        multiply_layers({name: layer}, "f", torch.bfloat16, CPU, fp8_matmuls=True)
        for name in ("blocks.0.ffn.0.weight", "text_embedding.0.weight")
    ]
    assert 0.01 < errors[0] < 0.05
    assert errors[1] < 5e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_a_value_that_is_not_finite_is_found(name, value):
    tensor = weight(4, 4) if name == "a.weight" else weight(4)
    tensor.view(-1)[3] = value
    with pytest.raises(CheckpointError, match=rf"`{name}` holds NaN or infinity.*fp32 tensor of f\.pth"):
        multiply_layers({"b.weight": weight(4, 4), name: tensor}, "f.pth", torch.float32, CPU)


def test_nan_bytes_of_fp8_are_found():
    stored, scale = quantize_rows(weight(32, 32), FP8)
    stored.view(torch.uint8)[5, 7] = 0x7F
    with pytest.raises(CheckpointError, match=r"`a\.weight` holds NaN.*fp8 layer"):
        multiply_layers({"a.weight": RowQuantizedLinear(stored, scale)}, "f", torch.bfloat16, CPU)


def test_overflow_is_found():
    with pytest.raises(CheckpointError, match=r"`a\.weight` overflows"):
        multiply_layers({"a.weight": weight(4, 4) * 1e38}, "f", torch.float32, CPU)


class Doubling(RowQuantizedLinear):
    def forward(self, x):
        return 2 * super().forward(x)


class Unsupported(RowQuantizedLinear):
    def forward(self, x):
        raise NotImplementedError("no such kernel")


@pytest.mark.parametrize(
    ("layer", "problem"), [(Doubling, r"wrongly: 100\.0% off"), (Unsupported, "cannot be.*no such kernel")]
)
def test_a_layer_that_the_device_gets_wrong_is_found(layer, problem):
    with pytest.raises(CheckpointError, match=rf"`a\.weight` .*{problem}"):
        multiply_layers({"a.weight": layer(*quantize_rows(weight(32, 32), FP8))}, "f", torch.float32, CPU)


def test_of_large_files_one_part_of_each_kind_is_read(monkeypatch):
    monkeypatch.setattr(layer_checks, "LAYER_BYTES", 64 * 16 * 4)
    monkeypatch.setattr(layer_checks, "FILE_BYTES", 0)
    large = weight(160, 16)
    large[64:] = torch.nan
    larger = torch.full((161, 16), torch.nan)
    quantized = RowQuantizedLinear(*quantize_rows(weight(16, 64), FP8))
    read = {"a.weight": large, "b.weight": larger, "c.weight": quantized}
    assert multiply_layers(read, "f", torch.float32, CPU) < 1e-6
    large[63] = torch.nan
    with pytest.raises(CheckpointError, match=r"`a\.weight` holds NaN"):
        multiply_layers(read, "f", torch.float32, CPU)


def test_what_is_checked_is_not_changed():
    layer = RowQuantizedLinear(*quantize_rows(weight(32, 32), FP8))
    before = {name: (part.data_ptr(), part.clone()) for name, part in layer.named_buffers()}
    multiply_layers({"a.weight": layer}, "f", torch.bfloat16, CPU)
    assert not layer.uses_fp8_matmul
    assert isinstance(layer, nn.Module)
    for name, part in layer.named_buffers():
        assert part.data_ptr() == before[name][0]
        assert torch.equal(part.float(), before[name][1].float())
