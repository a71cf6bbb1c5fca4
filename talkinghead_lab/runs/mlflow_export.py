"""Finished runs copied into an MLflow store on disk: a database and a folder of artifacts."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talkinghead_lab.errors import InvalidRequest, MissingExtra, OutputError
from talkinghead_lab.foundation.digests import combined, sha256_of_file
from talkinghead_lab.foundation.files import locked, output_errors
from talkinghead_lab.runs.folder import RECORD, REQUEST
from talkinghead_lab.runs.history import PastRun
from talkinghead_lab.runs.record import size_of_own_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "talkinghead_lab"
DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
IDENTITY = "talkinghead_lab.record_sha256"  # tag by which an exported run is found again
LONGEST_PARAM, LONGEST_TAG = 6000, 8000  # characters; MLflow refuses more
FACTS = ("talkinghead_lab", "python", "torch", "cpu", "gpu", "driver", "cuda")  # of the machine


@dataclass(frozen=True)
class Exported:
    """A run in the store.

    Args:
        folder: of the run.
        run_id: MLflow's.
        is_new: whether this call has written it; otherwise an earlier one had.
    """

    folder: Path
    run_id: str
    is_new: bool


def store_uri(folder: Path) -> str:
    """What MLflow calls the store in a folder: `mlflow ui --backend-store-uri URI` shows it."""
    return f"sqlite:///{folder.resolve() / DATABASE}"


def export(runs: Sequence[PastRun], folder: Path) -> list[Exported]:
    """Write finished runs into the MLflow store of a folder.

    A run's request and decided settings become parameters; its measures, lengths and times, metrics; digests,
    versions and the reasons for missing measures, tags; video, contact sheet, request and record, artifacts.
    A run whose record is in the store is not written again. An export that was interrupted is repeated.

    Args:
        runs: finished ones.
        folder: of the store, which is made if there is none.

    Raises:
        MissingExtra: MLflow is not installed.
        OutputError: a run's video is gone, the folder cannot be written, or another call writes it.
        InvalidRequest: MLflow cannot use a folder of this name.
    """
    _check_name(folder)
    for run in runs:
        size_of_own_file(run.result.video_path)
    with output_errors("the folder of the MLflow store cannot be made", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), _client(store_uri(folder)) as client:
        found = client.get_experiment_by_name(EXPERIMENT)
        artifacts = (folder.resolve() / ARTIFACTS).as_uri()
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifacts)
        return [_exported(client, experiment, run) for run in runs]


def _check_name(folder: Path) -> None:
    wrong = [character for character in "%?" if character in str(folder.resolve())]
    if wrong or "://" in str(folder) or ":/" in str(folder):
        raise InvalidRequest(
            "the MLflow store is a folder on this machine",
            received=str(folder),
            allowed="a path without % and ?, which MLflow takes for parts of an address",
        )


@contextmanager
def _client(uri: str) -> Iterator["MlflowClient"]:
    """A client of the store, without MLflow's usage statistics and its messages about new tables."""
    name = "MLFLOW_DISABLE_TELEMETRY"
    before = os.environ.get(name)
    os.environ[name] = "true"
    log = logging.getLogger("mlflow")
    level = log.level
    try:
        try:
            import alembic  # noqa: F401  # MLflow needs it to make the database
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
            from sqlalchemy.exc import SQLAlchemyError
        except ImportError as error:
            remedy = "Install the extra: pip install -e '.[mlflow]'"
            raise MissingExtra(f"the package {error.name!r} is not installed", remedy=remedy) from None
        log.setLevel(logging.WARNING)
        try:
            yield MlflowClient(tracking_uri=uri)
        except (MlflowException, SQLAlchemyError) as error:
            reason = str(error).splitlines()[0]
            raise OutputError(f"the MLflow store cannot be used ({reason})", received=uri) from None
    finally:
        log.setLevel(level)
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _exported(client: "MlflowClient", experiment: str, run: PastRun) -> Exported:
    """Find a run in the store, or write it."""
    identity = sha256_of_file(run.folder / RECORD)
    for found in client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'"):
        if found.info.status == "FINISHED":
            return Exported(run.folder, found.info.run_id, is_new=False)
        client.delete_run(found.info.run_id)  # its export was interrupted
    begun, finished = (
        int(1000 * path.stat().st_mtime) for path in (run.folder / REQUEST, run.folder / RECORD)
    )
    tags = _tags(run) | {IDENTITY: identity}
    run_id = client.create_run(experiment, begun, tags, run_name=run.folder.name).info.run_id
    for name, value in _params(run).items():
        client.log_param(run_id, name, value)
    for name, number in _metrics(run).items():
        client.log_metric(run_id, name, number, timestamp=finished)
    for path in _files(run):
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED", max(begun, finished))
    return Exported(run.folder, run_id, is_new=True)


def _params(run: PastRun) -> dict[str, str]:
    """Fields of the request, and under `resolved.` what was decided from it."""
    request = run.params.model_dump(mode="json")
    resolved = {f"resolved.{name}": value for name, value in run.record["resolved"].items()}
    return {name: _text(value, LONGEST_PARAM) for name, value in (request | resolved).items()}


def _metrics(run: PastRun) -> dict[str, float]:
    taken = {name: measure["value"] for name, measure in run.measures.items()}
    stages = {f"stage_seconds.{name}": stage["seconds"] for name, stage in run.record["stages"].items()}
    totals = {
        "video_seconds": run.result.duration_seconds,
        "frames": run.result.frame_count,
        "generation_seconds": run.seconds,
    }
    return {name: float(value) for name, value in (taken | stages | totals).items() if value is not None}


def _tags(run: PastRun) -> dict[str, str]:
    """Digests, versions, the machine, and the reasons for measures that could not be taken."""
    record = run.record
    environment = record["environment"]
    tags = {
        "video_sha256": record["video_sha256"],
        **{f"sha256.{name}": digest for name, digest in record["inputs"].items()},
        "sha256.weights": combined([record["weights"]]),
        **{f"environment.{name}": environment[name] for name in FACTS if environment.get(name) is not None},
        **{
            f"not_measured.{name}": measure["why_not"]
            for name, measure in run.measures.items()
            if measure["value"] is None
        },
    }
    if record["loras"]:
        tags["sha256.loras"] = ", ".join(str(lora.get("sha256")) for lora in record["loras"])
    if environment.get("git"):
        tags["mlflow.source.git.commit"] = environment["git"]
    return {name: _text(value, LONGEST_TAG) for name, value in tags.items()}


def _text(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _files(run: PastRun) -> list[Path]:
    """The files of a run; the contact sheet only if it is one."""
    sheet = run.result.contact_sheet_path
    files = [run.result.video_path, run.folder / REQUEST, run.folder / RECORD]
    return files if sheet.is_symlink() or not sheet.is_file() else [*files, sheet]
