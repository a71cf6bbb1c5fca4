"""Runs are exported to a real MLflow store, once each."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from talkinghead_lab.errors import FolderLocked, InvalidRequest, MissingExtra, OutputError
from talkinghead_lab.foundation.files import locked
from talkinghead_lab.runs.mlflow_export import EXPERIMENT, export, store_uri
from tests.runs.past_runs import finished_run

tracking = pytest.importorskip("mlflow.tracking")


def stored(folder):
    client = tracking.MlflowClient(tracking_uri=store_uri(folder))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Makes a store without experiments: a copy, as its tables take seconds to be made."""
    made = tmp_path_factory.mktemp("empty")
    tracking.MlflowClient(tracking_uri=store_uri(made)).search_experiments()

    def make(folder):
        folder.mkdir()
        shutil.copy(made / "mlflow.db", folder)
        return folder

    return make


@pytest.fixture
def run(tmp_path):
    loras = [{"path": "/w/ü.safetensors", "scale": 0.5}]
    run = finished_run(tmp_path / "runs" / "mine", {"seed": 7, "loras": loras}, {"lip_correlation": 0.75})
    (run.folder / "contact_sheet.png").write_bytes(b"sheet")
    return run


def test_a_run_is_exported_whole(run, tmp_path):
    folder = tmp_path / "a store #1"
    (exported,) = export([run], folder)
    assert exported.is_new
    client, (found,) = stored(folder)
    assert (found.info.run_id, found.info.run_name, found.info.status) == (
        exported.run_id,
        "mine",
        "FINISHED",
    )
    params, metrics, tags = found.data.params, found.data.metrics, found.data.tags
    assert params.keys() >= type(run.params).model_fields.keys()
    assert (params["seed"], params["max_frames"], params["audio_track"]) == ("7", "30", "null")
    assert json.loads(params["loras"]) == [{"path": "/w/ü.safetensors", "scale": 0.5}]
    assert params["resolved.device"] == run.record["resolved"]["device"]
    assert metrics["lip_correlation"] == 0.75 and metrics["frames"] == 30
    assert metrics["generation_seconds"] == pytest.approx(run.seconds)
    assert metrics["stage_seconds.sampling"] == run.record["stages"]["sampling"]["seconds"]
    assert "lse_c" not in metrics and tags["not_measured.lse_c"] == run.measures["lse_c"]["why_not"]
    assert tags["video_sha256"] == run.record["video_sha256"]
    assert tags["sha256.audio_path"] == run.record["inputs"]["audio_path"]
    assert tags["environment.torch"] == run.record["environment"]["torch"]
    files = {item.path: item for item in client.list_artifacts(found.info.run_id)}
    assert files.keys() == {run.result.video_path.name, "request.yaml", "run.json", "contact_sheet.png"}
    copy = client.download_artifacts(found.info.run_id, run.result.video_path.name, str(tmp_path))
    assert Path(copy).read_bytes() == run.result.video_path.read_bytes()


def test_exporting_twice_does_not_double(run, tmp_path, store):
    folder = store(tmp_path / "store")
    (first,) = export([run], folder)
    other = finished_run(tmp_path / "runs" / "other", {"seed": 8})
    again, new = export([run, other], folder)
    assert (again.run_id, again.is_new, new.is_new) == (first.run_id, False, True)
    assert len(stored(folder)[1]) == 2


def test_an_interrupted_export_is_repeated(run, tmp_path, store, monkeypatch):
    folder = store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(
            tracking.MlflowClient, "log_artifact", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            export([run], folder)
    (exported,) = export([run], folder)
    client, (found,) = stored(folder)
    assert exported.is_new and found.info.run_id == exported.run_id
    assert len(client.list_artifacts(found.info.run_id)) == 4


def test_nothing_of_the_process_changes(run, tmp_path, store, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    export([run], store(tmp_path / "store"))
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_what_cannot_be_exported_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    for name in ("100%", "what?", "https://mlflow.example.com"):
        with pytest.raises(InvalidRequest, match="a path without"):
            export([run], Path(name))
    held = tmp_path / "held"
    held.mkdir()
    with locked(held), pytest.raises(FolderLocked):
        export([run], held)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        export([run], tmp_path / "file")
    (held / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(OutputError, match="the MLflow store cannot be used"):
        export([run], held)
    run.result.video_path.unlink()
    with pytest.raises(OutputError, match="file cannot be used"):
        export([run], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_without_the_package_the_error_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '.\[mlflow\]'"):
        export([run], tmp_path / "store")
