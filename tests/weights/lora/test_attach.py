"""LoRAs beside the weights give what merged ones give, at any strength, in any stored type, in every step."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from talkinghead_lab.bench.sizes import embedded, random_inputs
from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.head_exchange import of_rows
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.block_types import quantize_q8_0
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.lora import LoraLinear
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.offload.requirements import NetworkSize
from talkinghead_lab.offload.residency import on_device
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks
from talkinghead_lab.sampling.chunk_sampling import chunk_noise, sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig, StepCacheConfig, spread
from talkinghead_lab.sampling.guidance import Guidance, branches_at
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS, timesteps
from talkinghead_lab.weights.lora import merge_lora
from talkinghead_lab.weights.lora.attach import AttachedLoras
from talkinghead_lab.weights.quantization import multiply_fp8, quantize_linears

CPU, GRID = torch.device("cpu"), LatentGrid(9, 32, 32)


def pairs(model: DiT, seed: int = 0, rank: int = 3) -> dict[str, torch.Tensor]:
    """A low-rank pair with an alpha for every linear layer and the patches, and changes of all else."""
    torch.manual_seed(seed)
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            out, *inputs = module.weight.shape
            parts |= {
                f"{name}.lora_down.weight": 0.1 * torch.randn(rank, *inputs),
                f"{name}.lora_up.weight": torch.randn(out, rank, *(1 for _ in inputs[1:])),
                f"{name}.alpha": torch.tensor(rank / 2),
                f"{name}.diff_b": 0.1 * torch.randn(out),
            }
        elif getattr(module, "weight", None) is not None:
            parts[f"{name}.diff"] = 0.1 * torch.randn(module.weight.shape)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            parts[name.removesuffix("modulation") + "diff_m"] = 0.1 * torch.randn(parameter.shape)
    return parts


def attached(model: DiT, *paths) -> DiT:
    model = copy.deepcopy(model)
    AttachedLoras(model, paths, CPU, torch.float32).attach_all()
    return model


@torch.inference_mode()
def velocity(model: DiT, speakers: int = 1) -> torch.Tensor:
    given = random_inputs(model.config, GRID, CPU, speakers)
    regions = embedded(model, given).regions
    time = torch.tensor([500.0])
    return model(given.latent, given.picture, time, [given.text], given.image, given.audio, regions)


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -2.0])
def test_a_lora_beside_the_weights_is_a_merged_one(model, write, strength, speakers):
    path = write(pairs(model))
    beside, merged = attached(model, path), copy.deepcopy(model)
    for earlier in (1.0, strength):
        beside.lora_strengths.set([earlier])
    merge_lora(merged, path, strength)
    torch.testing.assert_close(velocity(beside, speakers), velocity(merged, speakers), atol=2e-4, rtol=1e-3)
    far = (velocity(model, speakers) - velocity(merged, speakers)).abs().max()
    assert far > 0.05 or strength == 0


def test_two_loras_have_strengths_of_their_own(model, write):
    paths = [write(pairs(model, seed), name=f"lora-{seed}") for seed in (1, 2)]
    beside, merged = attached(model, *paths), copy.deepcopy(model)
    beside.lora_strengths.set([0.5, -0.25])
    for path, strength in zip(paths, [0.5, -0.25], strict=True):
        merge_lora(merged, path, strength)
    torch.testing.assert_close(velocity(beside), velocity(merged), atol=2e-4, rtol=1e-3)


def quantized(stored):
    def change(model: DiT) -> None:
        quantize_linears(model.get_submodule("blocks"), stored)

    return change


def in_q8_0(model: DiT) -> None:
    """The layers of the feed-forward whose width is a multiple of a GGUF block."""
    for block in model.blocks:
        linear = block.ffn[0]
        block.ffn[0] = BlockQuantizedLinear(quantize_q8_0(linear.weight), "Q8_0", linear.bias)


@pytest.mark.parametrize(
    "store", [quantized(torch.int8), quantized(FP8), in_q8_0], ids=["int8", "fp8", "Q8_0"]
)
def test_stored_weights_stay_as_they_are(model, write, store):
    """Merging quantises the sum again; beside the weights, the change is exact."""
    if store is in_q8_0:
        model = DiT(replace(model.config, dim=32, num_heads=2)).requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    path = write(pairs(model))
    store(model)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    beside = attached(model, path)
    beside.lora_strengths.set([0.7])
    exact = copy.deepcopy(model)
    for name, layer in list(exact.named_modules()):
        if hasattr(layer, "dequantized"):
            plain = nn.Linear(layer.shape[1], layer.shape[0])
            plain.weight, plain.bias = nn.Parameter(layer.dequantized()), nn.Parameter(layer.bias.clone())
            exact.set_submodule(name, plain)
    exact.requires_grad_(False)
    merge_lora(exact, path, 0.7)
    torch.testing.assert_close(velocity(beside), velocity(exact), atol=2e-4, rtol=1e-3)
    stored = {name.replace(".base", ""): tensor for name, tensor in beside.named_buffers()}
    assert stored.keys() == before.keys() != set()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored.items())


def test_the_same_layers_multiply_in_fp8(model, write):
    path = write(pairs(model))
    quantize_linears(model.get_submodule("blocks"), FP8)
    beside = attached(model, path)
    assert multiply_fp8(beside.get_submodule("blocks")) == multiply_fp8(model.get_submodule("blocks")) > 0
    assert velocity(beside).isfinite().all()


def test_streamed_blocks_carry_their_loras_and_the_plan_counts_them(model, write):
    path = write(pairs(model, rank=12))
    resident, streamed = attached(model, path), attached(model, path)
    plain, sizes = NetworkSize.of(model, "blocks"), NetworkSize.of(resident, "blocks")
    matrices = sum(
        tensor.nbytes
        for name, tensor in resident.named_parameters()
        if name.rpartition(".")[2] in ("up", "down")
    )
    assert sizes.total == plain.total + matrices
    streamed.blocks = StreamedBlocks(streamed.blocks, CPU, 256)
    assert {id(each) for each in streamed.blocks.large_tensors()} & {
        id(layer.up) for layer in streamed.modules() if isinstance(layer, LoraLinear)
    }
    for strength in (1.0, 0.25):
        for each in (resident, streamed):
            each.lora_strengths.set([strength])
        expected = velocity(resident)
        with on_device(streamed, CPU, 0):
            streamed.lora_strengths.set([strength])
            assert torch.equal(velocity(streamed), expected)


def test_some_output_channels_of_a_layer(model, write):
    beside = attached(model, write(pairs(model)))
    beside.lora_strengths.set([0.5])
    layer, x = beside.blocks[0].self_attn.v, torch.randn(2, 5, 24)
    with torch.inference_mode():
        torch.testing.assert_close(of_rows(layer, slice(6, 12))(x), layer(x)[..., 6:12])


CONFIGS = [
    SamplingConfig(4, 3.0, 1.0, 2.0, lora_scales=((1.0, 0.0),)),
    SamplingConfig(4, 3.0, 5.0, 4.0, lora_scales=((0.5, -1.0, 0.25, 1.0),), guidance_interval=(0.0, 0.5)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["falling", "listed"])
@torch.inference_mode()
def test_every_step_has_the_network_of_its_strength(model, write, config):
    """Also what embeds conditions and timesteps, which other requests do once a chunk."""
    path, given = write(pairs(model)), random_inputs(model.config, GRID, CPU)
    beside, noise = attached(model, path), chunk_noise(0, 0, GRID.latent_shape(16))[None]
    beside.lora_strengths.set([9.0])  # of another chunk
    conditions = embedded(beside, given, precompute=False)
    again = lambda: embedded(beside, given, precompute=False)  # noqa: E731
    sampled = sample_chunk(beside, noise, conditions, config, embed_again=again)
    latent, schedule, guidance = noise.clone(), timesteps(config.steps, config.shift), Guidance(config)
    latent[:, :, :1] = conditions.motion
    for step, strength in enumerate(spread(config.lora_scales[0], config.steps)):
        merged = copy.deepcopy(model)
        merge_lora(merged, path, strength)
        fixed = embedded(merged, given)
        time, tokens = (
            merged.time_embedding_of(schedule[step : step + 1]),
            merged.patchify(latent, fixed.picture),
        )
        velocities = {}
        for branch in branches_at(config, step):
            of_branch = fixed.texts[branch.prompt], fixed.image, fixed.audios[branch.audio]
            out = merged.run_blocks(tokens, time, fixed.rotation, *of_branch)
            velocities[branch] = merged.unpatchify(out, time, latent.shape)
        move = (schedule[step] - schedule[step + 1]) / TRAINED_TIMESTEPS
        latent = latent - guidance.combine(velocities, step) * move
        latent[:, :, :1] = fixed.motion
    torch.testing.assert_close(sampled, latent, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
@torch.inference_mode()
def test_another_strength_compiles_nothing_again(model, write):
    beside, counters = attached(model, write(pairs(model))), torch._dynamo.utils.counters
    given = random_inputs(model.config, GRID, CPU)
    noise = chunk_noise(0, 0, GRID.latent_shape(16))[None]
    again = lambda: embedded(beside, given, precompute=False)  # noqa: E731
    one, more = (SamplingConfig(steps, 3.0, 5.0, 4.0, lora_scales=((1.0, 0.5),)) for steps in (2, 5))
    more = replace(more, step_cache=StepCacheConfig(float("inf"), None, 1))
    expected = sample_chunk(beside, noise, again(), more, embed_again=again)
    torch._dynamo.reset()
    beside.compile_blocks()
    sample_chunk(beside, noise, again(), one, embed_again=again)
    graphs = counters["stats"]["unique_graphs"]
    compiled = sample_chunk(beside, noise, again(), more, embed_again=again)
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(compiled, expected, atol=2e-3, rtol=2e-3)


HADAMARD = {
    f"blocks.0.ffn.0.hada_w{i}_{part}": torch.randn(*size)
    for i in (1, 2)
    for part, size in (("a", (40, 2)), ("b", (2, 24)))
}
DORA = {
    "blocks.0.ffn.0.lora_down.weight": torch.randn(2, 24),
    "blocks.0.ffn.0.lora_up.weight": torch.randn(40, 2),
    "blocks.0.ffn.0.dora_scale": torch.rand(40, 1),
}


@pytest.mark.parametrize(
    "parts", [HADAMARD, DORA, {"blocks.0.ffn.0.diff": torch.randn(40, 24)}], ids=["LoHa", "DoRA", "diff"]
)
def test_what_can_only_be_merged_is_refused_before_anything_changes(model, write, parts):
    good = {
        "blocks.1.ffn.0.lora_down.weight": torch.randn(2, 24),
        "blocks.1.ffn.0.lora_up.weight": torch.randn(40, 2),
    }
    with pytest.raises(
        CheckpointError, match=r"cannot change with the step.*blocks\.0\.ffn\.0\.weight.*one number"
    ):
        AttachedLoras(model, [write(parts | good)], CPU, torch.float32)
    assert not any(isinstance(layer, LoraLinear) for layer in model.modules())
