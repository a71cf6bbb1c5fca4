"""Doing a run again tells the same from the different, and where the difference begins."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from talkinghead_lab import generate
from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.media import video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.verify import verify


@pytest.fixture(scope="module")
def pipeline(request_for) -> Pipeline:
    return Pipeline.load(request_for())


@pytest.fixture
def finished(request_for, pipeline, tmp_path):
    return generate(request_for(max_frames=13), tmp_path / "run", pipeline=pipeline, show_progress=False)


def change_record(run_dir, change) -> None:
    path = run_dir / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_run_done_again_is_identical(finished, capsys):
    assert main(["verify", str(finished.run_dir), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["identical"] is True
    assert told["first_chunk"] is None
    assert told["changed"] == {}


HOW_IT_IS_SAMPLED = [
    {"text_guide_scale": (5.0, 1.0), "guidance_interval": (0.0, 0.7), "use_apg": True},
    {"text_guide_scale": (5.0, 1.0), "cfg_zero_star": True, "zero_init_steps": 1},
    {"sampler": "unipc"},
    {"loras": ({"path": "sample:fast-lora", "scale": (1.0, 0.25)},)},
    {"step_cache": "first_block", "step_cache_threshold": 0.2, "diffusion_steps": 8},
    {"step_cache_threshold": 1e6, "max_consecutive_skips": 1, "diffusion_steps": 8},
    {"sampler": "lcm", "sigmas": (1.0, 0.7, 0.3)},
]


@pytest.mark.parametrize("changes", HOW_IT_IS_SAMPLED, ids=lambda changes: " ".join(changes))
def test_a_run_resumes_at_any_chunk_and_is_done_again_to_the_byte(changes, request_for, pipeline, tmp_path):
    params = request_for(**{"diffusion_steps": 3} | changes, max_frames=17)
    assert GenerationParams(**yaml.safe_load(params.to_yaml())) == params
    pipeline = Pipeline.load(params) if params.loras else pipeline
    whole = generate(params, tmp_path / "whole", pipeline=pipeline, show_progress=False)
    record = json.loads((whole.run_dir / "run.json").read_text())
    assert len(record["chunks"]) == 3
    counts = [[chunk[name] for chunk in record["chunks"]] for name in ("forward_passes", "skipped_passes")]
    assert sum(map(sum, counts)) == record["resolved"]["forward_passes"]
    assert (sum(counts[1]) > 0) == ("step_cache_threshold" in changes)
    assert sum(counts[1]) <= record["resolved"]["skippable_passes"]
    for last in (2, 3):
        folder = tmp_path / f"stopped in {last}"
        with pytest.raises(Stopped):
            generate(params, folder, pipeline=pipeline, on_progress=lambda p, last=last: p.chunk < last)
        resumed = generate(params, folder, pipeline=pipeline, show_progress=False)
        assert resumed.video_path.read_bytes() == whole.video_path.read_bytes()
        again = json.loads((folder / "run.json").read_text())["chunks"]
        assert [c["forward_passes"] for c in again] == [c["forward_passes"] for c in record["chunks"]]
    assert verify(whole.run_dir, pipeline=pipeline, show_progress=False).identical
    assert GenerationParams.from_video(whole.video_path) == params


def test_where_a_difference_begins_and_what_could_explain_it(finished, pipeline, request_for, tmp_path):
    """The record of one seed, held against the video of another."""
    params = request_for(max_frames=13, seed=43)
    other = generate(params, tmp_path / "other", pipeline=pipeline, show_progress=False)
    ours, theirs = (np.stack(list(video.read_frames(r.video_path))) for r in (finished, other))
    change_record(
        finished.run_dir,
        lambda record: (
            record["request"].update(seed=43),
            record["environment"].update(torch="1.0"),
        ),
    )
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert not found.identical
    assert found.video_intact
    assert (found.first_chunk, found.first_frame) == (0, 1)  # frame 0 is the portrait whatever the seed
    errors = np.square(ours.astype(float) - theirs).mean((1, 2, 3))
    assert errors[0] == 0
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / errors[1]))
    assert found.worst_psnr == pytest.approx(10 * np.log10(255**2 / errors.max()))
    assert list(found.changed) == ["environment.torch"]
    assert found.changed["environment.torch"][0] == "1.0"


def test_a_later_chunk_is_named(finished, pipeline):
    change_record(finished.run_dir, lambda record: record["chunks"][1].update(latent_sha256="0" * 64))
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert not found.identical
    assert (found.first_chunk, found.first_frame) == (1, None)


def test_a_video_that_was_changed_since_is_told(finished, pipeline):
    with finished.video_path.open("ab") as file:
        file.write(b"\0")
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert not found.identical
    assert not found.video_intact
    assert found.first_chunk is None


def test_a_video_that_no_longer_plays_is_told(finished, pipeline):
    finished.video_path.write_bytes(finished.video_path.read_bytes()[:200])
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert (found.identical, found.video_intact, found.first_chunk) == (False, False, None)


def test_what_differs_is_named_in_words(finished, pipeline):
    other = {"path": "fast.safetensors", "scale": 0.5, "sha256": "b" * 64}

    def differ(record) -> None:
        record["resolved"].update(attention="flash3", compiled=True, decode_type="float16")
        record["resolved"].pop("storage_type")  # as in an earlier version
        record["kernels"].update(self_attention="flash3", processes=2, optional={"flash3": "passed: error 0"})
        record["inputs"].update(audio_path="a" * 64)
        record["environment"].update(gpu="NVIDIA H100", torch_threads=64)
        record["weights"] = {"wan/other.safetensors": "c" * 64}
        record["loras"] = [other]

    change_record(finished.run_dir, differ)
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert found.changed["kernels.self_attention"] == ("flash3", "sdpa")
    assert found.changed["kernels.flash3"][0] == "passed: error 0"
    assert "kernels.vae_blocks" not in found.changed, "an earlier version did not record it"
    assert found.changed["loras"] == ([other], [])
    lines = str(found).splitlines()
    for line in (
        "setting, attention: flash3 then, sdpa now",
        "setting, compiled: True then, False now",
        "setting, decode type: float16 then, float32 now",
        "kernel, self attention: flash3 then, sdpa now",
        "kernel, processes: 2 then, 1 now",
        "machine, gpu: NVIDIA H100 then, none now",
        "weights, wan/other.safetensors: cccccccccccc… then, none now",
        "LoRAs: path fast.safetensors, scale 0.5, sha256 bbbbbbbbbbbb… then, none now",
    ):
        assert line in lines
    assert any(line.startswith("medium, audio path: aaaaaaaaaaaa… then, ") for line in lines)
    assert "storage" not in str(found)


def test_files_that_differ_in_their_metadata_alone_are_told(finished, pipeline):
    """As those of another version of the package do."""
    then, path = finished.video_path.read_bytes(), finished.video_path
    path.write_bytes(then.replace(b"a calm presenter", b"a warm presenter"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_record(finished.run_dir, lambda record: record.update(video_sha256=digest))
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert path.read_bytes() != then
    assert not found.identical
    assert found.differs_in == ("request.prompt",)
    assert str(found) == "same frames, record differs in request.prompt"


def test_the_sound_alone_differs(finished, pipeline, tmp_path):
    """The pictures are copied, the sound is not the recording's."""
    path, other = finished.video_path, tmp_path / "other.mp4"
    sound = np.zeros((1, 13 * 1920), np.float32)
    video.join_videos(other, [path], sound, video.read_metadata(path))
    other.replace(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_record(finished.run_dir, lambda record: record.update(video_sha256=digest))
    found = verify(finished.run_dir, pipeline=pipeline, show_progress=False)
    assert (found.first_chunk, found.first_frame, found.differs_in) == (None, None, ("sound",))


def test_a_record_without_kernels_is_verified(finished, pipeline):
    change_record(finished.run_dir, lambda record: record.pop("kernels"))
    assert verify(finished.run_dir, pipeline=pipeline, show_progress=False).changed == {}


def test_without_a_finished_run_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(OutputError, match="no finished run"):
        verify(tmp_path)


@pytest.mark.slow
def test_the_shell_gives_status_1_where_a_run_differs(finished):
    change_record(finished.run_dir, lambda record: record["request"].update(seed=43))
    done = subprocess.run(
        [sys.executable, "-m", "talkinghead_lab", "verify", str(finished.run_dir)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("different\nfirst differing chunk: 0\nfirst differing frame: 1, PSNR")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("absent", "no such folder"),
        ("file", "name the folder"),
        ("empty", "runs list"),
        ("sweep", "cells/"),
        ("unfinished", "--run FOLDER"),
    ],
)
def test_a_wrong_folder_is_invalid_input_and_called_what_it_is(kind, remedy, tmp_path, capsys):
    folder = tmp_path / "given"
    if kind == "file":
        folder.touch()
    elif kind != "absent":
        folder.mkdir()
    for name in {"sweep": ["sweep.yaml"], "unfinished": ["request.yaml"]}.get(kind, []):
        (folder / name).touch()
    assert main(["verify", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"NoFinishedRun: no finished run: received {folder}.")
    assert remedy in line
