"""The transformer gives the same velocity when compiled, quantised or with other attention kernels."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.bench.forwards import velocity as one_forward
from talkinghead_lab.bench.sizes import random_conditions
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.model import DiT, _without_tf32_hint
from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.weights.quantization import multiply_fp8, quantize_linears
from talkinghead_lab.weights.transformer import load_transformer
from tests.parity.test_dit import build, inputs


def velocity(model: DiT, speakers: int = 1) -> torch.Tensor:
    with torch.inference_mode():
        return model(timesteps=torch.tensor([500.0]), **inputs(speakers))


@pytest.mark.slow
def test_compiled_blocks_share_a_graph_for_each_number_of_speakers_and_give_the_same_velocity():
    model, called = build(), []
    assert len(model.blocks) > 1
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks()
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: called.append(1))
    counters = torch._dynamo.utils.counters
    for speakers, graphs in (1, 3), (2, 4), (1, 4), (2, 4):
        assert relative_error(velocity(model, speakers), velocity(build(), speakers)) < 1e-5
        # One per number of speakers, one for the update that the last block leaves, one for the head.
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert len(called) == 4 * len(model.blocks), "hooks run outside the graph"


def test_compilation_hides_the_tf32_hint_and_restores_the_warning_filters(monkeypatch):
    def compile_graph(graph, inputs):
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=1)
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile", compile_graph)
    torch._dynamo.reset()
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        filters = warnings.filters.copy()
        model.compile_blocks()
        velocity(model)
        assert warnings.filters == filters


@pytest.mark.parametrize("kernel", ["flash3_fp8", "triton_hopper", "triton"])
def test_quantised_attention_in_the_network(kernel):
    model = build()
    plain = velocity(model)
    model.use_attention(kernel, torch.device("cpu"))
    assert {block.self_attn.kernel for block in model.blocks} == {kernel}
    assert {block.cross_attn.kernel for block in model.blocks} == {"sdpa"}
    assert 1e-6 < relative_error(velocity(model), plain) < 0.03


def test_fp8_matmuls_in_the_network():
    model = build()
    plain, blocks = velocity(model), model.get_submodule("blocks")
    quantize_linears(blocks, torch.float8_e4m3fn)
    stored = velocity(model)
    # Self-attention, the query of cross-attention, the feed-forward layers.
    assert multiply_fp8(blocks) == len(model.blocks) * (4 + 1 + 2)
    multiplied = velocity(model)
    assert relative_error(stored, plain) < relative_error(multiplied, plain) < 0.03


@pytest.mark.slow
def test_a_request_selects_attention_kernel_and_compilation(request_for):
    """From the request to the velocity, which changes with the precision of attention."""
    conditions, velocities = None, []
    for changes in ({}, {"attention": "triton"}, {"compile_blocks": True}):
        dit = load_transformer(load_settings(request_for(**changes, device="cpu")))
        grid = LatentGrid(9, 32, 32)
        conditions = conditions or random_conditions(dit, grid, torch.device("cpu"))
        latent = torch.ones(1, *grid.latent_shape(dit.config.out_dim))
        with torch.inference_mode():
            velocities.append(one_forward(dit, latent, conditions))
    plain, quantized, compiled = velocities
    assert 1e-7 < relative_error(quantized, plain) < 0.03
    assert 0 < relative_error(compiled, plain) < 1e-5


def test_the_context_of_a_prompt_counts_distinct_tokens():
    model, text = build(), inputs(1)["texts"][0]
    length = model.config.text_len
    context = model.text_context([text, text[:1], text.new_ones(length, text.shape[1])])
    assert context.distinct_tokens.tolist() == [len(text) + 1, 2, length]
    for tokens, distinct in zip(context.tokens, context.distinct_tokens, strict=True):
        assert (tokens[distinct - 1 :] == tokens[-1]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_second_process_reads_the_compiled_code_from_disk(tmp_path):
    """Some options of PyTorch's compiler fail only when a later process reads the cached code."""
    command = [sys.executable, "-m", "talkinghead_lab.bench", "--only", "forward", "--size", "tiny"]
    for _ in range(2):
        done = subprocess.run(
            command,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]


def test_two_compilations_at_once_restore_the_warning_filters():
    before = list(warnings.filters)
    first, second = _without_tf32_hint(), _without_tf32_hint()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.filters != before, "the other one still compiles"
    second.__exit__(None, None, None)
    assert warnings.filters == before
