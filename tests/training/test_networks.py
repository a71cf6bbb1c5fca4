"""The bundled model's checkpoint layout, loaded and run by the same code as the released one."""

import math

import pytest
import torch
from PIL import Image

from talkinghead_lab.media.inputs import read_inputs
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.training import networks
from talkinghead_lab.weights import checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    networks.write_checkpoint(folder, networks.build_untrained(seed=1))
    return folder


@pytest.fixture
def request_for(folder, tmp_path, monkeypatch):
    Image.new("RGB", (160, 160), (200, 150, 120)).save(tmp_path / "portrait.png")

    def build(**fields) -> GenerationParams:
        paths = {name: str(folder / name) for name in checkpoints.RELEASED_REPOSITORIES}
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


def test_a_written_checkpoint_loads_unchanged(request_for):
    written = networks.build_untrained(seed=1)
    loaded = Pipeline.load(request_for(device="cpu"))
    for name, module in written.modules().items():
        ours, theirs = module.state_dict(), getattr(loaded, name).state_dict()
        assert ours.keys() == theirs.keys()
        for tensor in ours:
            torch.testing.assert_close(theirs[tensor], ours[tensor], atol=5e-4, rtol=1e-3)
    assert loaded.dit.config == written.dit.config


def test_the_seed_determines_the_weights_without_touching_global_state():
    before = torch.random.get_rng_state()
    first, again, other = (networks.build_untrained(seed).dit.patch_embedding.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_generates_a_chunk(request_for):
    params = request_for(device="cpu", chunk_frames=17, max_frames=17, diffusion_steps=2, prompt="nodding")
    pipeline = Pipeline.load(params)
    generator = ChunkGenerator(pipeline, pipeline.encode(read_inputs(params), params), params)
    chunk = generator.generate(generator.chunks()[0])
    assert chunk.frames.shape == (3, 17, 160, 160)
    assert math.isfinite(chunk.frames.sum().item())
    assert chunk.latent.std() > 0.1


def test_one_and_two_speakers_use_the_same_adapter(request_for):
    one, two = request_for(), request_for(second_audio_path="sample:recording")
    assert checkpoints.locate(one).infinitetalk == checkpoints.locate(two).infinitetalk


def test_tokenizer_reads_words_and_ignores_punctuation(folder):
    tokenizer = checkpoints.load_tokenizer(
        checkpoints.CheckpointFiles(folder / "ckpt_dir", folder, folder), 64
    )
    tokens = tokenizer(["Nodding, yes!", "nodding yes", "nodding zebra"])
    assert torch.equal(tokens.ids[0], tokens.ids[1])
    assert tokens.mask.sum(dim=1).tolist() == [3, 3, 3]
    unknown = networks.vocabulary().index(networks.UNKNOWN)
    assert (tokens.ids == unknown).sum(dim=1).tolist() == [0, 0, 1]


def test_the_released_negative_prompt_is_not_truncated(folder):
    tokenizer = checkpoints.load_tokenizer(
        checkpoints.CheckpointFiles(folder / "ckpt_dir", folder, folder), 64
    )
    tokens = tokenizer([networks.RELEASED_NEGATIVE_PROMPT])
    assert tokens.dropped == (0,)
    assert (tokens.ids == networks.vocabulary().index(networks.UNKNOWN)).sum() == 0
