"""The bundled model's checkpoint layout, loaded and run by the same code as the released one."""

import math

import pytest
import torch
from PIL import Image

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.training import networks
from talkinghead_lab.weights import checkpoints, locating, writing
from tests.pipeline.start import start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    writing.write_checkpoint(folder, networks.build_untrained(seed=1), networks.vocabulary())
    return folder


@pytest.fixture
def request_for(folder, tmp_path, monkeypatch):
    Image.new("RGB", (160, 160), (200, 150, 120)).save(tmp_path / "portrait.png")

    def build(**fields) -> GenerationParams:
        paths = {name: str(folder / name) for name in locating.RELEASED_REPOSITORIES}
        return GenerationParams(
            audio_path="sample:recording",
            image_path=str(tmp_path / "portrait.png"),
            checkpoint="released",
            frame_size="160x160",
            **paths | fields,
        )

    return build


def test_the_checkpoint_is_at_most_40_mb(folder):
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= 40e6


def test_the_seed_determines_the_weights_without_touching_global_state():
    before = torch.random.get_rng_state()
    first, again, other = (networks.build_untrained(seed).dit.patch_embedding.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_generates_a_chunk(request_for):
    params = request_for(device="cpu", chunk_frames=17, max_frames=17, diffusion_steps=2, prompt="nodding")
    generator = start(params)
    chunk = generator.generate(generator.resolved.chunks[0])
    assert chunk.frames.shape == (3, 17, 160, 160)
    assert math.isfinite(chunk.frames.sum().item())
    assert chunk.latent.std() > 0.1


def test_one_and_two_speakers_use_the_same_adapter(request_for):
    one, two = request_for(), request_for(second_audio_path="sample:recording")
    assert checkpoint_files(one).infinitetalk == checkpoint_files(two).infinitetalk


def test_the_released_negative_prompt_is_not_truncated(folder):
    tokenizer = checkpoints.load_tokenizer(locating.CheckpointFiles(folder / "ckpt_dir", folder, folder), 64)
    tokens = tokenizer([networks.RELEASED_NEGATIVE_PROMPT])
    assert tokens.dropped == (0,)
    assert (tokens.ids == networks.vocabulary().index(writing.UNKNOWN)).sum() == 0
