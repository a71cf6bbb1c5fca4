"""The command `sweep`: many runs, compared."""

import argparse
import json
from pathlib import Path

from talkinghead_lab.commands.overrides import add_overrides, overrides
from talkinghead_lab.commands.parameter_files import add_parameter_file


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    command = commands.add_parser("sweep", help="generate every run of a sweep; exit status 1 if one failed")
    add_parameter_file(command, "sweep", sweeps=True)
    add_overrides(command, "override a parameter of the sweep's base")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of the sweep; finished runs in it are reused"
    )
    add_workers(command)
    command.add_argument("--retry-failed", action="store_true", help="retry cells that failed")
    command.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    command.set_defaults(run=run)


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add the options that say where tasks run."""
    command.add_argument(
        "--workers", type=int, default=0, help="number of processes; unset: one per GPU, or a single one"
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster; auto: the one of this machine; local: start one",
    )


def run(options: argparse.Namespace) -> int:
    """Run a sweep and print the path of its table; return 0 if every run finished, else 1."""
    from talkinghead_lab.sweeps.definition import Sweep
    from talkinghead_lab.sweeps.sweep import run_sweep

    table = run_sweep(
        Sweep.from_yaml(options.sweep, overrides(options)),
        options.out,
        workers=options.workers,
        retry_failed=options.retry_failed,
        ray_address=options.ray,
    )
    states = table["state"].to_list()
    counts = {state: states.count(state) for state in ("finished", "failed", "missing")}
    path = str(options.out / "results.csv")
    print(json.dumps({"table": path} | counts) if options.json else path)
    return 0 if counts["finished"] == len(states) else 1
