"""Files of earlier versions are read; files of later ones are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.media import video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_text import VIDEO_METADATA_KEY
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.history import find_runs
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.runs.verify import verify
from talkinghead_lab.sweeps.definition import Sweep

OLD = Path(__file__).parent / "files-0.1.0"


def test_the_record_of_a_run_without_a_version_is_read():
    result = GenerationResult.from_run(OLD)
    assert (result.frame_count, result.resolution) == (30, "160x160")
    record = read_record(OLD)
    assert GenerationParams(**record["request"]) == GenerationParams.from_yaml(OLD / "request.yaml")


def test_a_run_without_a_version_is_listed(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    (run,) = find_runs(tmp_path)
    assert run.finished
    assert run.params.diffusion_steps == 4


@pytest.mark.parametrize("version", ["3", "0", "-1", "x", "1.5", "true"])
def test_files_of_a_version_that_is_not_known_are_refused(tmp_path, version):
    (tmp_path / "request.yaml").write_text(
        f"schema_version: {version}\n" + (OLD / "request.yaml").read_text()
    )
    with pytest.raises(InvalidRequest, match=rf"schema_version {version}; allowed: 1 to 2\. Update"):
        GenerationParams.from_yaml(tmp_path / "request.yaml")


def test_a_record_of_a_later_version_is_refused(tmp_path):
    record = json.loads((OLD / "run.json").read_text()) | {"schema_version": 3}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(InvalidRequest, match="unknown version"):
        read_record(tmp_path)


def test_a_damaged_record_is_an_error(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(OutputError, match="damaged"):
        read_record(tmp_path)


def test_a_notebook_accepts_the_request_of_a_run(tmp_path):
    """papermill injects every key of `request.yaml`, its version too."""
    request = GenerationParams.from_yaml(OLD / "request.yaml")
    namespace = {"schema_version": 1, **request.model_dump(mode="json")}
    assert GenerationParams.from_notebook(namespace) == request


LEFT_OUT = "audio_path: sample:recording\nimage_path: sample:portrait\n"
THEN = {"frame_size": "auto", "diffusion_steps": 40, "text_guide_scale": 5.0, "sample_shift": 7.0}
THEN |= {"seam_frames": 0, "trim_last_chunk": False}


@pytest.mark.parametrize("others", [(), ("run.json",), ("chunks",)])
@pytest.mark.parametrize("version", ["", "schema_version: 1\n", "schema_version: 2\n"])
def test_what_an_earlier_request_leaves_out_has_the_defaults_of_its_version(tmp_path, version, others):
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "request.yaml").write_text(version + LEFT_OUT)
    params = GenerationParams.from_yaml(tmp_path / "request.yaml")
    earlier = "1" in version or (not version and others)
    expected = THEN if earlier else GenerationParams.defaults_of("embedded")
    assert {name: getattr(params, name) for name in THEN} == {name: expected[name] for name in THEN}
    released = f"{version}{LEFT_OUT}checkpoint: released\nresolution: infinitetalk-720\n"
    (tmp_path / "request.yaml").write_text(released)
    assert GenerationParams.from_yaml(tmp_path / "request.yaml").shift == 11


def test_an_earlier_sweep_has_the_defaults_of_its_version(tmp_path):
    base = "base: {image_path: sample:portrait, audio_path: sample:recording}\naxes: {seam_frames: [4]}\n"
    for version, steps, size in ((1, 40, "auto"), (2, 4, "160x160")):
        (tmp_path / "sweep.yaml").write_text(f"schema_version: {version}\n{base}")
        (cell,) = Sweep.from_yaml(tmp_path / "sweep.yaml").cells()
        assert (cell.params.diffusion_steps, cell.params.frame_size) == (steps, size)
        assert cell.params.seam_frames == 4


def test_an_earlier_video_is_read_with_the_defaults_of_its_version(tmp_path):
    now = GenerationParams(audio_path="sample:recording", image_path="sample:portrait")
    then = now.replace(**THEN)
    for name, comment in (("old", LEFT_OUT), ("new", now.to_yaml(versioned=True))):
        frames = np.zeros((2, 32, 32, 3), np.uint8)
        video.write_video(tmp_path / f"{name}.mp4", [frames], None, 2, {VIDEO_METADATA_KEY: comment})
    assert GenerationParams.from_video(tmp_path / "old.mp4") == then
    assert GenerationParams.from_video(tmp_path / "new.mp4") == now


def test_a_run_of_the_previous_version_resumes_and_is_verified(tmp_path, request_for):
    """The folder is written as that version did: fields at its defaults are left out."""
    kept = {"chunk_frames": 5, "motion_frame": 1, "frame_size": "32x32", "max_frames": 5}
    released = request_for(**kept)
    then = released.replace(checkpoint="embedded", **THEN | kept | {"diffusion_steps": 1})
    fields = {**kept, "diffusion_steps": 1, "audio_path": then.audio_path, "image_path": then.image_path}
    fields |= {"prompt": then.prompt, "ckpt_dir": then.ckpt_dir, "wav2vec_dir": then.wav2vec_dir}
    fields |= {"infinitetalk_dir": then.infinitetalk_dir}
    run = tmp_path / "run"
    run.mkdir()
    (run / "request.yaml").write_text(yaml.safe_dump({"schema_version": 1, **fields}))
    (run / "chunks").mkdir()
    params = GenerationParams.from_yaml(run / "request.yaml")
    assert params == then
    generate(params, run, show_progress=False)
    record = json.loads((run / "run.json").read_text())
    assert record["resolved"]["sample_shift"] == 7.0
    record["request"]["sample_shift"] = None
    (run / "run.json").write_text(json.dumps(record | {"schema_version": 1}))
    assert verify(run, show_progress=False).identical
