"""What a merged weight is: every kind of update against its formula in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.block_types import quantize_q8_0
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.offload.streamed_blocks import stream
from talkinghead_lab.training.networks import embedded_configs
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.lora import merge_lora
from talkinghead_lab.weights.quantization import quantize_linears

FFN, CONV, QUERY = "blocks.0.ffn.0", "patch_embedding", "blocks.1.self_attn.q"


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def kronecker(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    """Value by value, of matrices or of a matrix and a kernel's matrices."""
    (a, b), (c, d, *kernel) = w1.shape, w2.shape
    out = np.empty((a * c, b * d, *kernel))
    for row in range(a * c):
        for column in range(b * d):
            out[row, column] = w1[row // c, column // d] * w2[row % c, column % d]
    return out


def low_rank(shape, rank=3):
    out, inputs, *kernel = shape
    up, down = values(out, rank, seed=1), values(rank, inputs, *kernel, seed=2)
    parts = {"lora_up.weight": up.reshape(out, rank, *(1 for _ in kernel)), "lora_down.weight": down}
    return parts, sum(np.multiply.outer(up[:, r], down[r]) for r in range(rank))


def flat_low_rank(shape, rank=3):
    parts, change = low_rank(shape, rank)
    return {name: part.reshape(len(part), -1) for name, part in parts.items()}, change


def low_rank_with_core(shape, rank=3):
    out, inputs, *kernel = shape
    up, core, down = values(out, rank), values(rank, rank, *kernel), values(rank, inputs)
    ones = [1 for _ in kernel]
    change = sum(
        core[r, s] * up[:, r].reshape(-1, 1, *ones) * down[s].reshape(1, -1, *ones)
        for r in range(rank)
        for s in range(rank)
    )
    parts = {
        "lora_up.weight": up.reshape(out, rank, *ones),
        "lora_mid.weight": core,
        "lora_down.weight": down.reshape(rank, inputs, *ones),
    }
    return parts, change


def hadamard(shape, rank=3):
    out, inputs = shape[0], int(np.prod(shape[1:]))
    a, b, c, d = (
        values(*size, seed=i)
        for i, size in enumerate([(out, rank), (rank, inputs), (out, rank), (rank, inputs)])
    )
    change = np.array([[(a[o] @ b[:, i]) * (c[o] @ d[:, i]) for i in range(inputs)] for o in range(out)])
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, change.reshape(shape)


def hadamard_with_cores(shape, rank=2):
    out, inputs, *kernel = shape
    parts, factors = {}, []
    for i in (1, 2):
        core, a, b = (
            values(rank, rank, *kernel, seed=i),
            values(rank, out, seed=i),
            values(rank, inputs, seed=i),
        )
        parts |= {f"hada_t{i}": core, f"hada_w{i}_a": a, f"hada_w{i}_b": b}
        factors.append(np.einsum("rs...,ro,si->oi...", core, a, b))
    return parts, factors[0] * factors[1]


def full_kronecker(shape):
    w1, w2 = values(4, 2), values(shape[0] // 4, shape[1] // 2, *shape[2:])
    return {"lokr_w1": w1, "lokr_w2": w2}, kronecker(w1, w2)


def kronecker_of_pairs(shape, rank=2):
    kernel = shape[2:]
    a, b = values(4, rank), values(rank, 2)
    c, d = values(shape[0] // 4, rank), values(rank, shape[1] // 2 * int(np.prod(kernel)))
    w2 = (c @ d).reshape(shape[0] // 4, shape[1] // 2, *kernel)
    return {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d}, kronecker(a @ b, w2)


def kronecker_with_core(shape, rank=2):
    w1, core = values(4, 2), values(rank, rank, *shape[2:])
    a, b = values(rank, shape[0] // 4), values(rank, shape[1] // 2)
    w2 = np.einsum("rs...,ro,si->oi...", core, a, b)
    return {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}, kronecker(w1, w2)


PRODUCTS = {
    low_rank: 3,
    low_rank_with_core: 3,
    hadamard: 3,
    hadamard_with_cores: 2,
    full_kronecker: None,
    kronecker_of_pairs: 2,
    kronecker_with_core: 2,
}


def named(layer, parts, alpha=None, dtype=torch.float32):
    tensors = {f"{layer}.{name}": torch.tensor(part).to(dtype) for name, part in parts.items()}
    return tensors if alpha is None else tensors | {f"{layer}.alpha": torch.tensor(alpha)}


def assert_close(found, expected):
    error = np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)
    assert error < 1e-6


@pytest.mark.parametrize("layer", [FFN, CONV])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_products(model, merge, kind, layer):
    parts, change = kind(tuple(model.get_parameter(f"{layer}.weight").shape))
    rank, alpha, strength = PRODUCTS[kind], 5.0, 0.4
    changes = merge(named(layer, parts, alpha), strength)
    assert list(changes) == [f"{layer}.weight"]
    assert_close(changes[f"{layer}.weight"], strength * (1.0 if rank is None else alpha / rank) * change)


def test_a_convolution_stored_as_matrices(model, merge):
    parts, change = flat_low_rank(tuple(model.patch_embedding.weight.shape))
    assert_close(merge(named(CONV, parts))[f"{CONV}.weight"], change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, FP8])
def test_types_of_the_file(model, merge, dtype):
    parts, _ = low_rank(tuple(model.get_parameter(f"{FFN}.weight").shape))
    tensors = named(FFN, parts, dtype=dtype)
    up, down = (t.double().numpy() for t in tensors.values())
    assert_close(merge(tensors)[f"{FFN}.weight"], up @ down)


def test_full_changes_of_weights_biases_norms_and_modulations(merge):
    expected = {
        "blocks.0.ffn.2.weight": values(24, 40),
        "blocks.0.ffn.2.bias": values(24),
        "blocks.0.self_attn.norm_q.weight": values(24),
        "blocks.0.norm3.weight": values(24),
        "blocks.0.norm3.bias": values(24, seed=1),
        "blocks.1.modulation": values(1, 6, 24),
        "blocks.0.modulation": values(1, 6, 24, seed=1),
        "head.modulation": values(1, 2, 24),
        "patch_embedding.weight": values(24, 36, 1, 2, 2),
    }
    spellings = (
        *("blocks.0.ffn.2.diff", "blocks.0.ffn.2.diff_b", "blocks.0.self_attn.norm_q.diff"),
        *("blocks.0.norm3.w_norm", "blocks.0.norm3.b_norm", "blocks.1.diff_m", "blocks.0.modulation.diff"),
        *("head.diff_m", "patch_embedding.diff"),
    )
    tensors = {name: torch.tensor(v) for name, v in zip(spellings, expected.values(), strict=True)}
    changes = merge(tensors, 2.0)
    assert changes.keys() == expected.keys()
    for name, change in expected.items():
        assert_close(changes[name], 2 * change)


def test_a_bias_of_the_second_factor_is_scaled_like_the_pair(model, merge):
    parts, change = low_rank(tuple(model.get_parameter(f"{FFN}.weight").shape))
    parts = {"lora_A.weight": parts["lora_down.weight"], "lora_B.weight": parts["lora_up.weight"]}
    bias = values(40)
    changes = merge(named(FFN, parts | {"lora_B.bias": bias}, 6.0), 0.5)
    assert_close(changes[f"{FFN}.weight"], 0.5 * 2 * change)
    assert_close(changes[f"{FFN}.bias"], 0.5 * 2 * bias)


@pytest.mark.parametrize("layer", [FFN, CONV])
@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("kind", [low_rank, hadamard, kronecker_of_pairs])
def test_dora_sets_the_norms_of_rows_or_columns(model, merge, kind, axis, layer):
    weight = model.get_parameter(f"{layer}.weight").double().numpy()
    parts, change = kind(weight.shape)
    kept = 0 if axis == "rows" else 1
    count, rank, ones = weight.shape[kept], PRODUCTS[kind], [1 for _ in weight.shape[2:]]
    norms = np.abs(values(count)) + 1
    target = weight + 4 / rank * change
    for i in range(count):
        index = (i,) if kept == 0 else (slice(None), i)
        target[index] *= norms[i] / np.sqrt((target[index] ** 2).sum())
    stored = norms.reshape((-1, 1, *ones) if kept == 0 else (1, -1, *ones))
    changes = merge(named(layer, parts | {"dora_scale": stored}, 4.0), 0.6)
    assert_close(changes[f"{layer}.weight"], 0.6 * (target - weight))


@pytest.mark.parametrize("layer", [FFN, CONV])
def test_dora_of_peft(model, merge, layer):
    """A convolution as wide as its input, for which the norms could also be those of columns."""
    model.patch_embedding = nn.Conv3d(24, 24, (1, 2, 2)).requires_grad_(False)
    weight = model.get_parameter(f"{layer}.weight").double().numpy()
    parts, change = low_rank(weight.shape)
    norms, ones = np.abs(values(len(weight))) + 1, [1 for _ in weight.shape[2:]]
    target = weight + change
    found = np.sqrt((target**2).sum(axis=tuple(range(1, target.ndim))))
    target *= (norms / found).reshape(-1, 1, *ones)
    tensors = {
        f"base_model.model.{layer}.lora_A.weight": parts["lora_down.weight"],
        f"base_model.model.{layer}.lora_B.weight": parts["lora_up.weight"],
        f"base_model.model.{layer}.lora_magnitude_vector": norms.reshape(1, -1, *ones) if ones else norms,
    }
    changes = merge({name: torch.tensor(value) for name, value in tensors.items()})
    assert_close(changes[f"{layer}.weight"], target - weight)


def test_a_row_without_a_norm_stays_zero(model, merge):
    model.get_parameter(f"{FFN}.weight")[0] = 0
    parts, _ = low_rank((40, 24))
    parts["lora_up.weight"][0] = 0
    merge(named(FFN, parts | {"dora_scale": np.ones((40, 1))}))
    assert not model.get_parameter(f"{FFN}.weight")[0].any()


def test_several_files_add_up_in_order(model, write):
    before = model.get_parameter(f"{QUERY}.weight").clone()
    expected = np.zeros((24, 24))
    for i, strength in enumerate((1.0, -0.25, 0.5)):
        parts, change = low_rank((24, 24), rank=i + 1)
        merge_lora(model, write(named(QUERY, parts), name=f"{i}"), strength)
        expected += strength * change
    assert_close(model.get_parameter(f"{QUERY}.weight") - before, expected)


@pytest.mark.parametrize(("stored", "bound"), [(torch.int8, 0.012), (FP8, 0.04)])
def test_a_quantised_layer_is_quantised_again(model, write, stored, bound):
    parts, change = low_rank((40, 24))
    weight = model.get_parameter(f"{FFN}.weight").double().numpy()
    bias = model.get_parameter(f"{FFN}.bias").clone()
    quantize_linears(model.blocks, stored)
    model.get_submodule(FFN).uses_fp8_matmul = stored is FP8
    assert merge_lora(model, write(named(FFN, parts)), 0.1) == 1
    layer = model.get_submodule(FFN)
    assert isinstance(layer, RowQuantizedLinear)
    assert (layer.weight.dtype, layer.uses_fp8_matmul) == (stored, stored is FP8)
    assert torch.equal(layer.bias, bias)
    merged = weight + 0.1 * change
    error = np.linalg.norm(layer.dequantized().double().numpy() - merged) / np.linalg.norm(merged)
    assert 1e-4 < error < bound


@pytest.mark.parametrize("size", [0.003, 0.01, 0.05])
@pytest.mark.parametrize("stored", [torch.int8, FP8, "Q8_0"])
def test_rounding_does_not_swallow_a_small_change(model, write, stored, size):
    """To nearest, it would: a weight is a multiple of the steps of its type, which are larger."""
    torch.manual_seed(0)
    linear = nn.Linear(512, 768).requires_grad_(False)
    linear.weight.normal_()
    model.blocks[0].ffn[0] = linear
    if stored == "Q8_0":
        model.blocks[0].ffn[0] = BlockQuantizedLinear(quantize_q8_0(linear.weight), stored, linear.bias)
    else:
        quantize_linears(model.blocks, stored)
    layer = model.get_submodule(FFN)
    weight = layer.dequantized()
    change = torch.randn(768, 4) @ torch.randn(4, 512)
    change *= size * weight.norm() / change.norm()

    def kept(layer: QuantizedLinear) -> float:
        return float(((layer.dequantized() - weight) * change).sum() / change.square().sum())

    if size == 0.003:
        assert kept(layer.requantized(weight + change)) < 0.5
    merge_lora(model, write({f"{FFN}.diff": 2 * change}), 0.5)
    assert kept(model.get_submodule(FFN)) == pytest.approx(1, abs=0.1)


def test_a_bias_of_a_quantised_layer(model, write):
    quantize_linears(model.blocks, torch.int8)
    layer = model.get_submodule(FFN)
    expected, rows = layer.bias + torch.arange(40), layer.weight.clone()
    merge_lora(model, write({f"{FFN}.diff_b": torch.arange(40.0)}), 1.0)
    assert torch.equal(model.get_submodule(FFN).bias, expected)
    assert torch.equal(model.get_submodule(FFN).weight, rows)


def test_a_layer_of_another_quantised_type(model, write):
    class Halved(QuantizedLinear):
        """Stores half of the weight, flattened."""

        shape, stored_as = (40, 24), "half"

        def __init__(self, weight):
            super().__init__(weight.flatten() / 2)

        def dequantized(self):
            return self.weight.view(40, 24) * 2

        def requantized(self, weight):
            return Halved(weight)

    weight = model.get_parameter(f"{FFN}.weight").clone()
    model.blocks[0].ffn[0] = Halved(weight)
    parts, change = low_rank((40, 24))
    merge_lora(model, write(named(FFN, parts)), 1.0)
    assert_close(model.blocks[0].ffn[0].dequantized() - weight, change)


@pytest.fixture
def bundled():
    """The bundled transformer's sizes, and the tensors of its LoRA."""
    return DiT(embedded_configs().dit).requires_grad_(False), read_tensors(
        SAMPLES_FOLDER / "fast-lora.safetensors"
    )


def test_the_bundled_lora_merges_to_the_bytes_of_the_formula_in_float32(bundled):
    model, tensors = bundled
    before = copy.deepcopy(model)
    merge_lora(model, SAMPLES_FOLDER / "fast-lora.safetensors", 0.7)
    layers = {name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")}
    assert len(layers) == 80
    for layer in layers:
        up, down = (tensors[f"{layer}.lora_{part}.weight"].float() for part in ("up", "down"))
        scale = tensors[f"{layer}.alpha"].item() / len(down)
        expected = before.get_parameter(f"{layer}.weight") + 0.7 * ((scale * up) @ down)
        assert torch.equal(model.get_parameter(f"{layer}.weight"), expected)
    unchanged = [n for n, p in model.named_parameters() if torch.equal(p, before.get_parameter(n))]
    assert len(unchanged) == len(list(model.parameters())) - 80


def test_blocks_that_stream_and_weights_on_the_meta_device(model, write):
    parts, _ = low_rank((40, 24))
    path = write(named(FFN, parts))
    streamed, shapes = copy.deepcopy(model), copy.deepcopy(model).to("meta")
    assert (
        merge_lora(model, path, 0.5) == merge_lora(streamed, path, 0.5) == merge_lora(shapes, path, 0.5) == 1
    )
    stream(streamed, "blocks", torch.device("cpu"), lambda block: None)
    assert torch.equal(streamed.get_parameter(f"{FFN}.weight"), model.get_parameter(f"{FFN}.weight"))
    assert shapes.get_parameter(f"{FFN}.weight").is_meta


def test_a_sum_that_exceeds_its_type_is_an_error(model, write):
    path = write({f"{FFN}.diff": torch.full((40, 24), 1000.0)})
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.ffn\.0\.weight exceed torch\.float16.*strength 100"
    ):
        merge_lora(model.half(), path, 100.0)
