"""Files of earlier versions are read; files of later ones are refused."""

import json
import shutil
from pathlib import Path

import pytest

from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.generate import GenerationResult
from talkinghead_lab.runs.history import find_runs

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


def test_files_of_a_later_version_are_refused(tmp_path):
    (tmp_path / "request.yaml").write_text("schema_version: 2\n" + (OLD / "request.yaml").read_text())
    with pytest.raises(InvalidRequest, match=r"schema_version 2; allowed: up to 1\. Update"):
        GenerationParams.from_yaml(tmp_path / "request.yaml")
    record = json.loads((OLD / "run.json").read_text()) | {"schema_version": 2}
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
