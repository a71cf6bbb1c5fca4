"""Networks serve only requests they were loaded for, from unchanged files; the record names those files."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.jobs import GROWING
from talkinghead_lab.weights.formats import network_file
from talkinghead_lab.weights.formats.containers import open_file
from talkinghead_lab.workers.worker import Job, Worker


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def record_of(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def lora(tmp_path) -> Path:
    """A LoRA of one's own."""
    return Path(shutil.copy(local_file("sample:fast-lora"), tmp_path / "mine.safetensors"))


def replace(path: Path) -> None:
    """Replace a weight file by another of the same size, under the same name."""
    tensors = {name: tensor * 0.5 for name, tensor in load_file(path).items()}
    other = path.with_name("other")
    save_file(tensors, other)
    other.replace(path)


def overwrite(path: Path) -> None:
    """Change a byte of a weight file in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def copied_checkpoint(checkpoint, tmp_path) -> dict[str, str]:
    """Fields of a request that name a copy of the checkpoint."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    return {name: str(folder / name) for name in ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")}


def test_weight_files_are_read_again_only_once_they_have_changed(request_for, copied_checkpoint, monkeypatch):
    """safetensors leaks memory with every file that it maps: a service would grow with every request."""
    request = request_for(**copied_checkpoint)
    before, read = load_settings(request), []
    monkeypatch.setattr(network_file, "open_file", lambda path: (read.append(path), open_file(path))[1])
    assert load_settings(request) == before
    assert read == []
    adapter = next(Path(copied_checkpoint["infinitetalk_dir"]).rglob("infinitetalk.safetensors"))
    replace(adapter)
    load_settings(request)
    assert read == [adapter]
    adapter.unlink()
    with pytest.raises(CheckpointError):
        load_settings(request)


def test_a_folder_with_all_weights_is_searched_without_reading_them_again(
    request_for, copied_checkpoint, tmp_path, monkeypatch
):
    folders = dict.fromkeys(copied_checkpoint)
    request = request_for(**folders, weights=str(tmp_path / "checkpoint"))
    before, read = load_settings(request), []
    monkeypatch.setattr(network_file, "open_file", lambda path: (read.append(path), open_file(path))[1])
    assert load_settings(request) == before
    assert read == []


def fast(path="sample:fast-lora", scale=1.0) -> dict:
    return {"path": str(path), "scale": scale}


@pytest.mark.parametrize(
    ("loaded", "wanted", "named"),
    [
        ({}, {"loras": [fast()]}, "loras .*fast-lora.* × 1; allowed: loras none"),
        ({"loras": [fast()]}, {}, "loras none; allowed: loras .*fast-lora"),
        ({"loras": [fast()]}, {"loras": [fast(scale=0.5)]}, "loras .* × 0.5; allowed: loras .* × 1"),
        (
            {"loras": [fast()]},
            {"loras": [fast(scale=[0.5])]},
            "loras .* × a schedule; allowed: loras .* × 1",
        ),
        ({}, {"precision": "int8"}, "storage torch.int8; allowed: storage None"),
        ({}, {"precision": "bf16"}, "compute torch.bfloat16; allowed: compute torch.float32"),
        ({"compile_blocks": True}, {}, "compiled False; allowed: compiled True"),
        ({"vram_budget_gib": 8}, {}, "offloaded False; allowed: offloaded True"),
        ({}, {"vram_budget_gib": 8}, "offloaded True; allowed: offloaded False"),
    ],
)
def test_other_networks_are_refused_and_named(request_for, tmp_path, loaded, wanted, named):
    pipeline = Pipeline.load(request_for(**loaded))
    with pytest.raises(InvalidRequest, match=f"are not those of this request: received {named}"):
        generate(request_for(**wanted), tmp_path / "run", pipeline=pipeline, show_progress=False)
    assert not list((tmp_path / "run").glob("*.mp4"))


def test_schedules_of_a_lora_share_their_networks(request_for, tmp_path):
    """One run leaves nothing to the next."""
    wanted = request_for(loras=[fast(scale=[1, 0])], diffusion_steps=2, max_frames=5)
    pipeline = Pipeline.load(wanted.replace(loras=[fast(scale=[0.5])]))
    other = wanted.replace(loras=[fast(scale=[-1])])
    first, _, third = (
        generate(request, tmp_path / str(n), pipeline=pipeline, show_progress=False)
        for n, request in enumerate([wanted, other, wanted])
    )
    assert first.video_path.read_bytes() == third.video_path.read_bytes()
    record = record_of(tmp_path / "0")
    assert record["resolved"]["lora_strengths"] == [[1.0, 0.0]]
    assert [(lora["scale"], lora["sha256"]) for lora in record["loras"]] == [
        ([1.0, 0.0], sha256(local_file("sample:fast-lora")))
    ]


def test_the_order_of_loras_and_the_folder_of_the_checkpoint_count(
    request_for, lora, tmp_path, copied_checkpoint
):
    pipeline = Pipeline.load(request_for(loras=[fast(), fast(lora)]))
    for changes, named in (
        ({"loras": [fast(lora), fast()]}, "loras .*mine.*, .*fast-lora"),
        ({"loras": [fast(), fast(lora)], **copied_checkpoint}, "ckpt_dir .*, wav2vec_dir .*, infinitetalk"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            generate(request_for(**changes), tmp_path / named[:4], pipeline=pipeline, show_progress=False)


@pytest.mark.parametrize("change", [replace, overwrite])
def test_a_lora_that_changes_while_it_is_loaded(request_for, lora, tmp_path, change):
    params, worker = request_for(loras=[fast(lora)], max_frames=9), Worker()
    pipeline = worker.load(params)
    assert worker.load(params.replace(seed=2)) is pipeline
    assert worker.attempt(Job(params, tmp_path / "first")) is None
    assert record_of(tmp_path / "first")["loras"][0]["sha256"] == sha256(lora)
    change(lora)
    with pytest.raises(InvalidRequest, match=f"changed since: {lora}"):
        generate(params, tmp_path / "refused", pipeline=pipeline, show_progress=False)
    assert worker.attempt(Job(params, tmp_path / "second")) is None
    assert worker.pipeline is not pipeline
    assert record_of(tmp_path / "second")["loras"][0]["sha256"] == sha256(lora)


def test_weights_that_are_replaced_during_a_run_are_recorded_as_loaded(
    request_for, copied_checkpoint, tmp_path
):
    params = request_for(**copied_checkpoint, max_frames=17)
    weights = Path(params.ckpt_dir, "diffusion_pytorch_model.safetensors")
    loaded = sha256(weights)
    generate(params, tmp_path / "plain", show_progress=False)
    seen = []

    def replace_once(progress):
        if not seen:
            replace(weights)
        seen.append(progress)

    generate(params, tmp_path / "run", on_progress=replace_once, show_progress=False)
    record = record_of(tmp_path / "run")
    assert record["weights"]["wan/diffusion_pytorch_model.safetensors"] == loaded != sha256(weights)
    assert record["chunks"][1]["frames_sha256"] == record_of(tmp_path / "plain")["chunks"][1]["frames_sha256"]


def test_weights_that_are_overwritten_during_a_run_end_it(request_for, copied_checkpoint, tmp_path):
    """The mapped values change with the file."""
    params = request_for(**copied_checkpoint)
    weights = Path(params.ckpt_dir, "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=f"overwritten while it was in use: received {weights}"):
        generate(params, tmp_path / "run", on_progress=lambda _: overwrite(weights), show_progress=False)
    assert not (tmp_path / "run" / "run.json").exists()
    assert saved_chunks(tmp_path / "run") == []


def saved_chunks(run: Path) -> list[Path]:
    return [file for file in (run / "chunks").iterdir() if file.name != Path(GROWING).name]


class SlowHashing:
    """Hashing that waits until it is let go."""

    def __init__(self, monkeypatch) -> None:
        self.go, self.started = threading.Event(), threading.Event()
        plain = digests.sha256_of_file

        def slow(path: Path) -> str:
            if path.suffix == ".safetensors":
                self.started.set()
                assert self.go.wait(60)
            return plain(path)

        monkeypatch.setattr(digests, "sha256_of_file", slow)


def test_hashing_does_not_delay_the_first_step(request_for, copied_checkpoint, tmp_path, monkeypatch):
    hashing = SlowHashing(monkeypatch)

    def first_step(progress):
        assert hashing.started.wait(60)
        assert hashing.go.is_set() or saved_chunks(tmp_path / "run") == []
        hashing.go.set()

    params = request_for(**copied_checkpoint)
    generate(params, tmp_path / "run", on_progress=first_step, show_progress=False)
    weights = record_of(tmp_path / "run")["weights"]
    assert weights["wav2vec2/model.safetensors"] == sha256(Path(params.wav2vec_dir, "model.safetensors"))


def test_a_file_that_is_replaced_before_it_is_hashed_ends_the_run(
    request_for, lora, copied_checkpoint, tmp_path, monkeypatch
):
    hashing = SlowHashing(monkeypatch)

    def first_step(progress):
        replace(lora)
        hashing.go.set()

    params = request_for(**copied_checkpoint, loras=[fast(lora)])
    with pytest.raises(CheckpointError, match=f"was changed while it was in use: received {lora}"):
        generate(params, tmp_path / "run", on_progress=first_step, show_progress=False)
    assert not (tmp_path / "run" / "run.json").exists()
