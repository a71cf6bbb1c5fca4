"""The transformer's ways of going faster give what the plain one gives."""

import pytest
import torch
from torch import nn

from talkinghead_lab import checkpoints
from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.bench.forwards import velocity as one_forward
from talkinghead_lab.bench.sizes import random_conditions
from talkinghead_lab.latent_grid import LatentGrid
from talkinghead_lab.loading import load_transformer
from talkinghead_lab.models.dit import DiT
from talkinghead_lab.quantization import multiply_fp8, quantize_linears
from tests.parity.test_dit import build, inputs


def velocity(model: DiT, speakers: int = 1) -> torch.Tensor:
    with torch.inference_mode():
        return model(timesteps=torch.tensor([500.0]), **inputs(speakers))


@pytest.mark.slow
def test_compiled_blocks_share_one_graph_and_give_the_same():
    model = build()
    assert len(model.blocks) > 1
    plain, called = velocity(model), []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks()
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: called.append(1))
    assert relative_error(velocity(model), plain) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(called) == len(model.blocks), "hooks run outside the graph"


@pytest.mark.parametrize("kind", ["flash3_fp8", "triton"])
def test_eight_bit_attention_in_the_whole_network(kind):
    model = build()
    plain = velocity(model)
    model.use_attention(kind, torch.device("cpu"))
    assert {block.self_attn.kind for block in model.blocks} == {kind}
    assert {block.cross_attn.kind for block in model.blocks} == {"sdpa"}
    assert 1e-6 < relative_error(velocity(model), plain) < 0.03


def test_fp8_products_in_the_whole_network():
    model = build()
    plain, blocks = velocity(model), model.get_submodule("blocks")
    linears = sum(isinstance(layer, nn.Linear) for layer in blocks.modules())
    quantize_linears(blocks, torch.float8_e4m3fn)
    stored = velocity(model)
    assert multiply_fp8(blocks) == linears
    multiplied = velocity(model)
    assert relative_error(stored, plain) < relative_error(multiplied, plain) < 0.03


@pytest.mark.slow
def test_a_request_chooses_kernel_and_compiling(request_for):
    """The whole way of a request; frames differ by what the rounding of attention changes."""
    conditions, velocities = None, []
    for changes in ({}, {"attention": "triton"}, {"compile_blocks": True}):
        request = request_for(**changes)
        dit = load_transformer(request, checkpoints.locate(request), torch.device("cpu"), offloaded=False)
        grid = LatentGrid(9, 32, 32)
        conditions = conditions or random_conditions(dit, grid, torch.device("cpu"))
        latent = torch.ones(1, *grid.latent_shape(dit.config.out_dim))
        with torch.inference_mode():
            velocities.append(one_forward(dit, latent, conditions))
    plain, rounded, compiled = velocities
    assert 1e-7 < relative_error(rounded, plain) < 0.03
    assert 0 < relative_error(compiled, plain) < 1e-5
