"""Networks are gone before the next ones are read: no two sets are in memory at once."""

import gc
import weakref

import pytest

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.pipeline import pipeline as pipeline_module
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.workers.worker import Worker


@pytest.fixture
def no_gc():
    """Nothing is freed by the luck of a garbage collection."""
    gc.disable()
    yield
    gc.enable()


def tensors_of(pipeline: Pipeline) -> list:
    networks = (pipeline.dit, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder)
    networks += (pipeline.speech_encoder,)
    return [tensor for n in networks for tensor in (*n.parameters(), *n.buffers())]


def held_bytes(references) -> int:
    """Bytes of the tensors that are still alive."""
    alive = [reference() for reference in references]
    return sum(tensor.untyped_storage().nbytes() for tensor in alive if tensor is not None)


@pytest.fixture
def loads(monkeypatch):
    """For every load of networks: the bytes that all earlier ones hold when it starts, and its tensors."""
    held, references = [], []
    load = Pipeline._load.__func__

    def recorded(cls, *arguments):
        held.append(held_bytes(references))
        loaded = load(cls, *arguments)
        references.extend(map(weakref.ref, tensors_of(loaded)))
        return loaded

    monkeypatch.setattr(Pipeline, "_load", classmethod(recorded))
    return held, references


# The blocks of a compiled network are reference cycles; streamed weights lie in buffers of their own.
WAYS = [{}, {"compile_blocks": True}, {"vram_budget_gib": 64}]


@pytest.mark.parametrize("first", WAYS)
def test_a_worker_exchanges_networks(request_for, no_gc, loads, first):
    worker, (held, references) = Worker(), loads
    worker.load(request_for(**first))
    assert held_bytes(references) > 1e6
    worker.load(request_for(precision="int8"))
    worker.load(request_for(loras=[{"path": "sample:fast-lora"}]))
    assert held == [0, 0, 0]
    worker.release()
    assert [reference for reference in references if reference() is not None] == []


@pytest.mark.parametrize("way", WAYS[::2])
def test_generating_twice_holds_one_set(request_for, no_gc, loads, tmp_path, way):
    held, references = loads
    for number in range(2):
        generate(request_for(max_frames=9, **way), tmp_path / str(number), show_progress=False)
    assert held == [0, 0]
    assert held_bytes(references) == 0


@pytest.mark.parametrize("way", WAYS[::2])
def test_an_error_whose_traceback_is_kept_holds_no_weights(request_for, no_gc, loads, tmp_path, way):
    def fail(progress):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as kept:
        generate(request_for(**way), tmp_path, on_progress=fail, show_progress=False)
    assert held_bytes(loads[1]) == 0
    assert kept.traceback


def test_an_error_while_loading_holds_no_weights(request_for, no_gc, monkeypatch):
    references = []
    load = pipeline_module.load_transformer

    def recorded(settings):
        dit = load(settings)
        references.extend(map(weakref.ref, dit.parameters()))
        return dit

    def fail(*arguments):
        raise CheckpointError("damaged")

    monkeypatch.setattr(pipeline_module, "load_transformer", recorded)
    monkeypatch.setattr(pipeline_module, "load_network", fail)
    with pytest.raises(CheckpointError) as kept:
        Pipeline.load(request_for())
    assert references
    assert held_bytes(references) == 0
    assert kept.traceback
