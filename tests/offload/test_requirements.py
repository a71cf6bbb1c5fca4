"""The memory model against figures that can be counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from talkinghead_lab.bench.sizes import SIZES
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.speech import SpeechEncoder, SpeechEncoderConfig
from talkinghead_lab.offload.requirements import (
    EAGER,
    FP8,
    FRAGMENTED,
    FRAGMENTED_ELSEWHERE,
    PLAIN,
    NetworkSize,
    Requirements,
    coefficients,
    requirements,
)
from talkinghead_lab.offload.streamed_blocks import SLOTS, StreamedBlocks
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.plan import planned
from talkinghead_lab.profiling import profile
from talkinghead_lab.weights.quantization import quantize_linears
from tests.pipeline.start import resolved_for

PUBLISHED = Path(__file__).parents[2] / "outputs" / "published"


class Stack(nn.Module):
    """A layer with 100 floats, and four blocks with a weight of 200 x 200 floats and a bias each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(99, 1)
        self.blocks = nn.ModuleList(nn.Linear(200, 200) for _ in range(4))


def test_the_size_of_a_network_is_its_blocks_and_the_rest():
    with torch.device("meta"):
        size = NetworkSize.of(Stack(), "blocks")
    block = 160_000  # bytes; a multiple of the alignment
    assert size == NetworkSize(fixed=4 * 100 + 4 * 4 * 200, block=block, blocks=4)
    assert size.total == size.fixed + 4 * block
    assert size.smallest == size.fixed + SLOTS * block
    assert NetworkSize.of(Stack()).total == size.total


def test_a_plan_without_weights_equals_the_requirements_of_the_loaded_networks(request_for):
    for precision in ("auto", "int8"):
        params = request_for(device="cpu", precision=precision, vram_budget_gib=64)
        loaded = Pipeline.load(params)
        plan = planned(resolved_for(params))
        assert loaded.requirements(resolved_for(params)) == plan
        assert isinstance(loaded.dit.blocks, StreamedBlocks)
        assert loaded.dit.blocks.block_bytes == plan.needs["sampling"].size.block


def test_requirements_grow_with_pixels_frames_and_the_step_cache(request_for):
    def work(stage, size=(32, 32), **changes):
        resolved = resolved_for(request_for(device="cpu", **changes))
        return planned(replace(resolved, frame_size=size)).needs[stage].work

    tokens = 3 * (32 // 16) ** 2
    unit = tokens * 192 * 4
    more = coefficients("cpu")["stages"]["sampling"]["activations"] * unit
    assert work("sampling", (64, 32)) - work("sampling") == pytest.approx(more, abs=2)
    cached = {"step_cache_threshold": 0.1}
    assert work("sampling", **cached) - work("sampling") == 3 * unit
    assert work("sampling", **cached, step_cache="first_block") - work("sampling") == 5 * unit
    frames = 4 * 3 * 32 * 32 * 4  # four more frames, with three floats per pixel
    assert work("decode", chunk_frames=13) - work("decode") == frames
    assert work("decode", (64, 64)) > work("decode")


def test_the_budget_of_a_long_recording_is_that_of_a_short_one():
    """Released sizes of the speech encoder, whose convolutions and attention work in pieces."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "conv_bias": False}
    sizes |= {"conv_dim": (512,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, *(2,) * 6)}
    sizes |= {"intermediate_size": 3072, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    with torch.device("meta"):
        networks = {"speech encoder": SpeechEncoder(SpeechEncoderConfig(**sizes))}

    def need(kind: str, seconds: float, voices: int = 1) -> Requirements:
        return requirements(networks, torch.device(kind), LatentGrid(81, 480, 832), seconds, False, voices)

    for kind in ("cuda", "cpu"):
        minute, hours = need(kind, 60), need(kind, 2 * 60 * 60)
        assert hours.smallest == minute.smallest < 2 * GIB
        assert minute.smallest - need(kind, 10).smallest < 0.35 * GIB
    assert need("cuda", 600, 2).kept == 0, "encoded recordings are in host memory"
    assert need("cpu", 600, 2).kept == 2 * 15_000 * 12 * 768 * 4


def test_budgets_follow_from_the_stages(request_for):
    plan = planned(resolved_for(request_for(device="cpu")))
    assert plan.resident == plan.outside + sum(plan.weights.values()) + plan.work
    assert plan.smallest < plan.resident
    need = plan.needs["sampling"]
    for resident in range(need.size.blocks - SLOTS):
        limit = need.size.smallest + need.work + resident * need.size.block
        assert need.held(limit) + need.work == limit
    assert need.held(need.smallest) == need.size.smallest, "the smallest budget streams all blocks"
    assert need.held(need.size.total + need.work) == need.size.total
    plan.check(plan.smallest)
    with pytest.raises(InvalidRequest, match="about"):
        plan.check(round(0.001 * GIB))


def test_on_a_gpu_a_stage_includes_fragmentation(request_for):
    resolved = resolved_for(request_for(device="cpu"))
    on_a_gpu = replace(
        resolved.networks, device=torch.device("cuda"), compute=torch.bfloat16, decode=torch.float16
    )
    plan = planned(replace(resolved, networks=on_a_gpu))
    need, model = plan.needs["sampling"], coefficients("cuda")["stages"]["sampling"]
    used = model["base_gib"] * GIB + (model["activations"] + model["traits"]["eager"]) * need.unit
    assert need.work == round((1 + FRAGMENTED["sampling"]) * used)


def test_a_budget_holds_what_was_reserved_within_it():
    """PyTorch's allocator reserves more than tensors take; the driver counts what is reserved."""
    table = profile.read(PUBLISHED / "h100" / "profile.json")
    runs = table.filter(table["setting"].str.contains("8.0 GiB, fp8")).drop_nulls("held_gib").to_dicts()
    assert {run["stage"] for run in runs} == set(coefficients("cuda")["stages"])
    for run in runs:
        model = coefficients("cuda")["stages"][run["stage"]]
        traits = filter(None, run["traits"].split(", "))
        slope = model["activations"] + sum(model["traits"][trait] for trait in traits)
        pieces = 1 + FRAGMENTED.get(run["stage"], FRAGMENTED_ELSEWHERE)
        work = pieces * (model["base_gib"] + slope * run["unit_gib"]) + run["extra_gib"]
        # What is within the budget and not planned may be reserved, too: less than a block.
        assert run["reserved_gpu_gib"] < run["held_gib"] + work + 0.2, run


def test_the_model_predicts_measured_peaks_of_a_gpu():
    table = profile.read(PUBLISHED / "h100" / "profile.json")
    runs = profile.predicted_peaks(table, coefficients("cuda"))
    assert len(runs) == 47
    assert runs["error_percent"].is_between(-3, 4).all()
    assert profile.cross_validated_peaks(table)["error_percent"].abs().max() < 4


def test_sampling_needs_more_for_what_a_request_asks():
    """Two speakers, eager layers, layers without fused kernels, and a dequantised matrix."""
    with torch.device("meta"):
        dit = DiT(replace(SIZES["released"].dit, num_layers=2)).to(torch.bfloat16)
    grid, gpu = SIZES["released"].grid, torch.device("cuda")

    def need(voices=1, *traits):
        networks = {"transformer": dit}
        return requirements(networks, gpu, grid, 1.0, False, voices, traits=traits).needs["sampling"]

    unit, more = need().unit, coefficients("cuda")["stages"]["sampling"]["traits"]
    pieces = (1 + FRAGMENTED["sampling"]) * unit
    assert unit == 32_760 * 5120 * 2
    assert need(2).work - need().work == pytest.approx(more["two speakers"] * pieces, abs=2)
    assert need(1, EAGER).work - need().work == pytest.approx(more["eager"] * pieces, abs=2)
    eager_plain = more["eager"] + more["eager plain layers"]
    assert need(1, EAGER, PLAIN).work - need().work == pytest.approx(eager_plain * pieces, abs=2)
    compiled = need().work
    quantize_linears(dit.get_submodule("blocks"), torch.int8)
    assert need().extra == 13_824 * 5120 * 2
    assert need().work - compiled == pytest.approx(need().extra + more["dequantised"] * pieces, abs=2)
    assert need(1, FP8).extra == 0
    assert need(2, FP8).traits == ("fp8 matmuls", "two speakers")
    assert need(2, EAGER, FP8).traits == ("eager", "eager fp8 matmuls", "eager two speakers")


def test_every_stage_has_coefficients_for_both_types_of_device():
    for kind in ("cpu", "cuda"):
        model = coefficients(kind)
        on_cpu = {"triton_gib"} if kind == "cpu" else set()
        assert set(model) == {"measured_on", "outside_gib", "stages"} | on_cpu
        assert set(model["stages"]) == {"text", "audio", "image", "vae_encode", "sampling", "decode"}
        assert all(stage["activations"] >= 0 for stage in model["stages"].values())
