"""The cache gives what computing would give, to the bit; what is damaged is computed again."""

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from talkinghead_lab.pipeline.encoder_cache import EncoderCache, _is_encoder
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.digests import weight_states
from tests.pipeline.start import start

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path) -> EncoderCache:
    return EncoderCache(tmp_path, "weights", CPU)


def test_a_value_is_computed_once_and_comes_back_to_the_bit(cache):
    value = (torch.randn(3, 2), torch.randn(4).bfloat16())
    given = cache("text", ["hello", 3], lambda: value)
    known = cache("text", ["hello", 3], lambda: pytest.fail("computed again"))
    for tensors in (given, known):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, value, strict=True))
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize(
    "inputs", [["hell", "o"], ["hello", 1], [torch.zeros(4)], [torch.zeros(2, 2)], [torch.zeros(4).int()]]
)
def test_other_inputs_are_other_entries(cache, inputs):
    cache("text", ["hello"], lambda: (torch.zeros(1),))
    cache("text", [torch.zeros(4).half()], lambda: (torch.zeros(1),))
    assert cache("text", inputs, lambda: (torch.ones(1),))[0] == 1


def test_other_weights_are_other_entries(cache, tmp_path):
    cache("text", ["hello"], lambda: (torch.zeros(1),))
    assert EncoderCache(tmp_path, "others", CPU)("text", ["hello"], lambda: (torch.ones(1),))[0] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_entry_is_computed_again(cache, tmp_path, damage):
    value = torch.arange(100.0)
    cache("image", ["a"], lambda: (value,))
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    content[-5] ^= 1
    entry.write_bytes(content[:-40] if damage == "cut" else content)
    assert torch.equal(cache("image", ["a"], lambda: (value,))[0], value)
    assert cache.misses == 2
    assert torch.equal(cache("image", ["a"], lambda: pytest.fail("not mended"))[0], value)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_entry_under_the_name_of_another_is_computed_again(cache, tmp_path, kind):
    cache("image", ["a"], lambda: (torch.zeros(3),))
    (entry,) = tmp_path.iterdir()
    other = EncoderCache(tmp_path / "other", "weights", CPU)
    other(kind, ["b"], lambda: (torch.ones(3),))
    (place,) = other.folder.iterdir()
    shutil.copy(entry, place)
    assert torch.equal(other(kind, ["b"], lambda: (torch.ones(3),))[0], torch.ones(3))
    assert other.misses == 2
    assert torch.equal(other(kind, ["b"], lambda: pytest.fail("not mended"))[0], torch.ones(3))


def store_again_and_again(folder: Path) -> None:
    cache = EncoderCache(folder, "weights", CPU, limit_bytes=10_000)
    for number in range(200):
        value = torch.full((500,), float(number % 7))
        assert torch.equal(cache("audio", [number % 7], lambda value=value: (value,))[0], value)


def test_processes_share_a_cache(tmp_path):
    """They store, read and evict the same entries; each gets what it would have computed."""
    processes = [
        multiprocessing.get_context("fork").Process(target=store_again_and_again, args=(tmp_path,))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob("*.partial*"))


def test_the_folder_stays_within_its_bound(tmp_path):
    cache = EncoderCache(tmp_path, "weights", CPU, limit_bytes=10_000)
    for number in range(8):
        cache("audio", [number], lambda: (torch.zeros(500),))
    cache("audio", ["too large"], lambda: (torch.zeros(5000),))
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= 10_000
    cache("audio", [7], lambda: pytest.fail("the latest was dropped"))


def test_conditions_from_the_cache_are_those_that_are_computed(request_for, tmp_path):
    params = request_for(max_frames=9)
    pipeline = Pipeline.load(params)
    cache = EncoderCache.of(weight_states(checkpoint_files(params)), pipeline.device, tmp_path)
    made = []
    for remember in (None, cache, cache):
        kept = {"cache": remember} if remember else {}
        generator = start(params, pipeline, **kept)
        latent = generator.generate(generator.resolved.chunks[0]).latent
        made.append((generator.conditions.prompt, *generator.conditions.audio, latent))
    assert (cache.hits, cache.misses) == (4, 4)
    for computed, first, known in zip(*made, strict=True):
        assert torch.equal(computed, first)
        assert torch.equal(computed, known)


def test_files_of_encoders_are_known_by_their_place():
    """diffusers names the autoencoder's file as the Wan2.1 folder names the transformer's."""
    name = "diffusion_pytorch_model.safetensors"
    encoders = [place for place in ("wan", "transformer", "adapter", "vae") if _is_encoder(f"{place}/{name}")]
    assert encoders == ["vae"]
