"""A budget changes where weights lie and no bit of the video; memory that runs out leaves nothing behind."""

import gc
import weakref

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest, OutOfMemory
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.plan import planned
from talkinghead_lab.runs.stage_clock import StageClock
from tests.offload.test_streamed_blocks import DEVICES
from tests.pipeline.start import resolved_for, start


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


def frames(pipeline: Pipeline, params: GenerationParams) -> torch.Tensor:
    """Two chunks of a video."""
    generator = start(params, pipeline)
    made, previous = [], None
    for chunk in generator.resolved.chunks[:2]:
        generated = generator.generate(chunk, previous)
        made.append(generated.new_frames)
        previous = generated.frames
    return torch.cat(made, dim=1)


def smallest_budget(params: GenerationParams) -> float:
    """In GiB, and a little more than the plan's smallest, so that no block stays."""
    return Pipeline.load(params).requirements(resolved_for(params)).smallest / GIB + 1e-6


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_a_video_within_a_budget_has_the_same_bits(request_for, device, precision):
    params = request_for(device=device, precision=precision)
    plain = frames(Pipeline.load(params), params)
    budget = smallest_budget(params)
    for gib in (budget, budget + 0.012, 64):
        offloaded = params.replace(vram_budget_gib=gib)
        pipeline = Pipeline.load(offloaded)
        assert torch.equal(frames(pipeline, offloaded), plain)
        weights = [*pipeline.dit.parameters(), *pipeline.vae.parameters(), *pipeline.dit.buffers()]
        assert {tensor.device.type for tensor in weights} == {"cpu"}, "nothing stays after its stage"


@pytest.mark.parametrize("budget", [None, 1.0])
def test_a_process_that_receives_encodings_loads_no_text_and_no_speech_encoder(request_for, budget):
    params = request_for(vram_budget_gib=budget)
    pipeline = Pipeline.load(params, encodes=False)
    assert pipeline.text_encoder is pipeline.tokenizer is pipeline.speech_encoder is None
    assert set(pipeline.requirements(resolved_for(params)).needs) == {
        *("image", "vae_encode", "sampling", "decode")
    }


def test_a_lora_is_merged_before_blocks_stream(request_for):
    params = request_for(loras=[{"path": "sample:fast-lora"}])
    plain = frames(Pipeline.load(params), params)
    offloaded = params.replace(vram_budget_gib=smallest_budget(params))
    assert torch.equal(frames(Pipeline.load(offloaded), offloaded), plain)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_lora_of_changing_strength_streams_with_its_blocks(request_for, precision):
    """At one strength, it gives what a merged one gives, but for what quantising the sum again changes."""
    lora = {"path": "sample:fast-lora", "scale": [1.0]}
    params = request_for(loras=[lora], diffusion_steps=2, precision=precision)
    plain = frames(Pipeline.load(params), params)
    offloaded = params.replace(vram_budget_gib=smallest_budget(params))
    assert torch.equal(frames(Pipeline.load(offloaded), offloaded), plain)
    merged, without = (params.replace(loras=loras) for loras in ([lora | {"scale": 1.0}], []))
    near, far = ((frames(Pipeline.load(each), each) - plain).square().mean() for each in (merged, without))
    assert near < 1e-8 if precision == "fp32" else near < far / 10
    schedule = params.replace(loras=[lora | {"scale": [1.0, 0.0]}])
    assert not torch.equal(frames(Pipeline.load(schedule), schedule), plain)


def test_the_plan_counts_loras_beside_the_weights(request_for):
    plain, merged, beside = (
        request_for(device="cpu", loras=loras, diffusion_steps=2)
        for loras in ([], *([{"path": "sample:fast-lora", "scale": scale}] for scale in (1.0, [1.0, 0.5])))
    )
    weights = [
        Pipeline.load(each).requirements(resolved_for(each)).weights["transformer"]
        for each in (plain, merged, beside)
    ]
    assert weights[0] == weights[1]
    loaded = Pipeline.load(beside)
    names = [name for name, _ in loaded.dit.named_parameters() if name.endswith((".up", ".down"))]
    matrices = sum(loaded.dit.get_parameter(name).nbytes for name in names)
    assert weights[2] - weights[0] == matrices > 0
    assert loaded.requirements(resolved_for(beside)) == planned(resolved_for(beside))


def test_a_budget_that_cannot_hold_two_blocks_is_refused(request_for):
    params = request_for(vram_budget_gib=0.001, device="cpu")
    with pytest.raises(
        InvalidRequest, match=r"vram_budget_gib.*too small.*received 0.001; allowed: about 0\."
    ):
        frames(Pipeline.load(params), params)


class Failure:
    """Stands before a block and runs out of memory at its nth call, holding a tensor as a real one would."""

    def __init__(self, block, call: int):
        self.run, self.block, self.calls_left = block.forward, block, call
        self.held: list[weakref.ref] = []
        block.forward = self

    def __call__(self, x, *arguments):
        self.calls_left -= 1
        if self.calls_left == 0:
            activation = x + 1
            self.held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return self.run(x, *arguments)


@pytest.mark.parametrize("offloaded", [False, True])
def test_memory_that_runs_out_is_reported_and_the_next_try_succeeds(request_for, device, offloaded):
    params = request_for(device=device)
    plain = frames(Pipeline.load(params), params)
    if offloaded:
        params = params.replace(vram_budget_gib=smallest_budget(params))
    pipeline = Pipeline.load(params)
    generator = start(params, pipeline)
    generator.stage = StageClock()
    chunk = generator.resolved.chunks[0]
    failure = Failure(pipeline.dit.blocks[3], call=2)
    with pytest.raises(
        OutOfMemory,
        match=r"ran out of memory.*out of memory during sampling\).*planned GiB.*resident.*offloaded",
    ) as caught:
        generator.generate(chunk)
    gc.collect()
    assert failure.held[0]() is None, "the error keeps no tensor of the failed work"
    assert generator.texts == {}
    assert generator.picture is None
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert torch.equal(generator.generate(chunk).new_frames, plain[:, : chunk.new])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_really_full_is_left_as_it_was(request_for):
    params = request_for(device="cuda", frame_size="256x256")
    pipeline = Pipeline.load(params)
    made = start(params, pipeline)
    made.generate(made.resolved.chunks[0])  # libraries take their workspaces at first use
    del made
    generator = start(params, pipeline)
    gc.collect()  # what the first one made lies in cycles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    hog = all_free_memory()
    with pytest.raises(OutOfMemory):
        generator.generate(generator.resolved.chunks[0])
    hog.clear()
    assert torch.cuda.memory_allocated() == before
    generator.generate(generator.resolved.chunks[0])


def all_free_memory() -> list[torch.Tensor]:
    """Take the GPU's free memory, but for pieces of less than 4 MiB."""
    taken, size = [], torch.cuda.mem_get_info()[0]
    while size >= 2**22:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return taken


def test_other_errors_pass_unchanged(request_for):
    params = request_for()
    pipeline = Pipeline.load(params)
    generator = start(params, pipeline)
    with pytest.raises(KeyError, match="mine"):
        generator.generate(generator.resolved.chunks[0], on_step=lambda step: {}["mine"])


def test_a_pipeline_refuses_a_request_for_other_networks(request_for):
    pipeline = Pipeline.load(request_for())
    for changes in ({"loras": [{"path": "sample:fast-lora"}]}, {"precision": "int8"}):
        with pytest.raises(InvalidRequest, match="the loaded networks are not those of this request"):
            pipeline.serving(resolved_for(request_for(**changes)))
    assert pipeline.serving(resolved_for(request_for(seed=7, diffusion_steps=3))).dit is pipeline.dit


def test_one_pipeline_serves_requests_of_different_budgets(request_for):
    pipeline = Pipeline.load(request_for(vram_budget_gib=64))
    assert pipeline.serving(resolved_for(request_for(vram_budget_gib=32))).budget == 32 * GIB
    with pytest.raises(InvalidRequest, match="offloaded"):
        pipeline.serving(resolved_for(request_for()))
