"""The commands `runs list`, `runs compare` and `runs export`: runs that lie on disk."""

import argparse
import json
import shlex
from pathlib import Path

from talkinghead_lab.foundation.imports import gc_disabled


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    runs = commands.add_parser("runs", help="list and compare runs, or export them to MLflow")
    group = runs.add_subparsers(required=True, metavar="ACTION")
    command = group.add_parser("list", help="print a table of runs, newest first")
    command.add_argument(
        "folder", nargs="?", type=Path, default=Path("outputs"), help="folder of runs; default: outputs"
    )
    command.add_argument(
        "--sort", metavar="COLUMN",
        help="run, begun, state, frames, seconds, a field of the request, or a measure (best run first)",
    )  # fmt: skip
    command.add_argument("--reverse", action="store_true", help="reverse the order")
    command.add_argument("--json", action="store_true", help="print the runs as one JSON object")
    command.set_defaults(run=run_list)
    command = group.add_parser(
        "compare", help="compare runs in a table of settings and measures, and in a video side by side"
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    command.add_argument("--video", type=Path, metavar="OUT.mp4", help="write all videos side by side")
    command.add_argument(
        "--sound", metavar="NAME", help="with --video: the run that is heard; default: the longest one"
    )
    command.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    command.set_defaults(run=run_compare)
    command = group.add_parser("export", help="copy finished runs into an MLflow store, each once")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    command.add_argument(
        "--mlflow", type=Path, required=True, metavar="DIR", help="folder of the store; made if missing"
    )
    command.add_argument("--json", action="store_true", help="print what was exported as one JSON object")
    command.set_defaults(run=run_export)


def run_list(options: argparse.Namespace) -> None:
    """Print a table of the runs in a folder."""
    with gc_disabled():
        from talkinghead_lab.figures.run_list import list_runs
    found = list_runs(options.folder)
    if options.sort or options.reverse:
        found = found.sorted(options.sort or "begun", options.reverse)
    print(json.dumps(found.to_json()) if options.json else found)


def run_compare(options: argparse.Namespace) -> None:
    """Print a comparison of runs; with `--video`, write their videos side by side."""
    with gc_disabled():
        from talkinghead_lab.errors import InvalidRequest
        from talkinghead_lab.figures.comparison import compare
    if options.sound is not None and options.video is None:
        raise InvalidRequest(
            "--sound is for the video", received=options.sound, remedy="Add --video OUT.mp4."
        )
    found = compare(*options.runs)
    path = found.video(options.video, options.sound) if options.video else None
    if options.json:
        print(json.dumps(found.to_json() | {"side_by_side": None if path is None else str(path)}))
        return
    print(found)
    if path is not None:
        print(f"\nSide by side: {path}")


def run_export(options: argparse.Namespace) -> None:
    """Export runs to MLflow; print the store's address and what became of each run."""
    with gc_disabled():
        from talkinghead_lab.foundation.paths import project_folder
        from talkinghead_lab.runs.history import finished_run
        from talkinghead_lab.runs.mlflow_export import export, store_uri
    base = project_folder()
    folder = base / options.mlflow
    exported = export([finished_run(base / run) for run in options.runs], folder)
    if options.json:
        rows = [{"folder": str(each.folder), "run_id": each.run_id, "new": each.is_new} for each in exported]
        print(json.dumps({"store": store_uri(folder), "runs": rows}))
        return
    for each in exported:
        print(f"{'exported' if each.is_new else 'already there'}: {each.folder} as {each.run_id}")
    print(f"mlflow ui --backend-store-uri {shlex.quote(store_uri(folder))}")
