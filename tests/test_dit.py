"""The transformer's ways of going faster give what the plain one gives."""

import pytest
import torch
from torch import nn

from talkinghead_lab.models.dit import DiT
from talkinghead_lab.quantization import multiply_fp8, quantize_linears
from tests.parity.test_dit import build, inputs


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


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
