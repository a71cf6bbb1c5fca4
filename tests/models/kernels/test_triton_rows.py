"""The row-wise Triton kernels match the layers they replace; they run on Hopper GPUs."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from talkinghead_lab.bench.forwards import random_latent, relative_error, velocity
from talkinghead_lab.bench.sizes import SIZES, random_conditions, random_dit
from talkinghead_lab.models.dit.blocks import RMSNorm, layer_norm
from talkinghead_lab.models.kernels.attention import Rotation, grid_angles, kernel_status
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate, quantized
from talkinghead_lab.models.kernels.optional_kernels import kernels_of
from talkinghead_lab.models.kernels.quantized_attention import quantize, scale_for
from talkinghead_lab.models.quantized.rows import quantize_rows
from talkinghead_lab.weights.quantization import multiply_fp8, quantize_linears

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not kernels_of(DEVICE).status("fused_fp8_layers").passed,
        reason="needs a GPU that runs the fused layers",
    ),
]


@pytest.fixture
def triton_rows() -> ModuleType:
    from talkinghead_lab.models.kernels import triton_rows

    return triton_rows


def test_norm_and_rotate_matches_the_layers(triton_rows):
    torch.manual_seed(0)
    rotation = Rotation.from_angles(grid_angles((2, 3, 5), 128), DEVICE)
    norm = RMSNorm(384, 1e-6).cuda().bfloat16()
    norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 30, 384, device=DEVICE).bfloat16()
    plain = rotation(norm(x).unflatten(-1, (3, 128)))
    arguments = x, norm.weight, norm.eps, rotation.cosine, rotation.sine
    for parts in (1, 3):
        rotated = triton_rows.norm_and_rotate(*arguments, parts, None, None)
        assert relative_error(rotated.movedim(0, 2).flatten(2).float(), plain.flatten(2).float()) < 0.003
    bounds = plain.float().abs().amax(dim=(0, 1, 3))
    factors = 1 / scale_for(bounds, FP8)
    rotated = triton_rows.norm_and_rotate(*arguments, 1, factors, None)[0].unflatten(-1, (3, 128)).float()
    assert rotated.abs().amax(dim=(0, 1, 3)).tolist() == [torch.finfo(FP8).max] * 3
    quantized = quantize(plain.float(), FP8, (0, 1, 3))[0]
    assert relative_error(rotated, quantized.float()) < 0.01
    centre = plain.float().mean(dim=1).flatten(1).bfloat16()
    rotated = triton_rows.norm_and_rotate(*arguments, 1, factors / 2, centre)[0].unflatten(-1, (3, 128))
    centred = plain.float() - centre.float().view(2, 1, 3, 128)
    assert relative_error(rotated.float() * 2 / factors[:, None], centred) < 0.03


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("added", ["out", "gate", "gate and offset"])
def test_add_and_norm_matches_the_layers(triton_rows, added, quantized, batch):
    torch.manual_seed(0)
    x, out = torch.randn(2, batch, 30, 1000, device=DEVICE).bfloat16()
    gate, shift, scale = torch.randn(batch, 6, 1000, device=DEVICE)[:, :3].split(1, dim=1)
    norm = torch.nn.LayerNorm(1000).cuda().bfloat16()
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.uniform_(-1, 1)
    offset = torch.randn(1000, device=DEVICE).bfloat16()
    update = ResidualUpdate(out, gate if "gate" in added else None, offset if "offset" in added else None)
    expected_sum = ResidualUpdate(out.float(), update.gate, update.offset).added_to(x)
    plain = torch.nn.LayerNorm(1000, elementwise_affine=False)
    for weight, bias, expected in (
        (norm.weight, norm.bias, layer_norm(expected_sum, norm)),
        (1 + scale, shift, layer_norm(expected_sum, plain, (shift, scale))),
    ):
        summed, normed, scales = triton_rows.add_and_norm(x, *update, weight, bias, norm.eps, quantized)
        assert relative_error(summed.float(), expected_sum.float()) < 3e-4
        if quantized:
            rows, expected_scales = quantize_rows(expected.flatten(0, 1), FP8)
            expected = (rows.float() * expected_scales).view_as(expected)
            normed = normed.float() * scales
        assert relative_error(normed.float(), expected.float()) < (0.02 if quantized else 0.005)


def test_quantized_matches_the_quantisation_of_a_sum():
    torch.manual_seed(0)
    x = torch.randn(30, 2, 1000, device=DEVICE).bfloat16().transpose(0, 1)  # strided, as some attention is
    offset = torch.randn(2, 1000, device=DEVICE)
    rows, scale, _ = quantized(x, offset.bfloat16())
    total = (x + offset.bfloat16()[:, None].float()).flatten(0, 1)
    plain_rows, plain_scale = quantize_rows(total, FP8)
    assert torch.equal(scale.flatten(), plain_scale.flatten())
    # Multiplied by the inverse of the scale instead of divided by it, ties may fall to either side.
    errors = [(some.flatten(0, -2).float() * plain_scale - total).abs() for some in (rows, plain_rows)]
    assert (errors[0] <= errors[1] + 1e-6 * total.abs()).all()


def test_gelu_and_quantize_matches_the_layers(triton_rows):
    torch.manual_seed(0)
    wide = torch.randn(60, 1000, device=DEVICE).bfloat16()
    rows, scale = triton_rows.gelu_and_quantize(wide)
    plain_rows, plain_scale = quantize_rows(F.gelu(wide.float(), approximate="tanh"), FP8)
    assert relative_error(rows.float() * scale, plain_rows.float() * plain_scale) < 0.01


@pytest.mark.parametrize("kernel", ["sdpa", "flash3_fp8"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_network_gives_the_same_velocity_with_and_without_triton_kernels(precision, kernel):
    size = SIZES["tiny"]
    if not (status := kernel_status(kernel, DEVICE)).passed:
        pytest.skip(str(status))
    dit = random_dit(size.dit, DEVICE, torch.bfloat16)
    if precision == "fp8":
        quantize_linears(dit.get_submodule("blocks"), FP8)
        multiply_fp8(dit.get_submodule("blocks"))
    conditions, latent = random_conditions(dit, size.grid, DEVICE), random_latent(size, DEVICE)
    dit.use_attention(kernel, DEVICE)
    velocities = []
    for has_triton_kernels in (True, False):
        for block in dit.blocks:
            block.self_attn.has_triton_kernels = block.self_attn.has_fp8_kernels = has_triton_kernels
            block.cross_attn.has_triton_kernels = has_triton_kernels
        with torch.inference_mode():
            velocities.append(velocity(dit, latent, conditions))
    assert 0 < relative_error(*velocities) < 0.02
