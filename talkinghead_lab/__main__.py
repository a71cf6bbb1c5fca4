"""`python -m talkinghead_lab`: the same pipeline from a shell."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from talkinghead_lab import __version__
from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.foundation.imports import gc_disabled
from talkinghead_lab.params import GenerationParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for bad input, 1 for a failure, 130 when stopped."""
    options = parse(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return options.run(options) or 0
    except TalkingHeadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped; what is finished stays in the run's folder.", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as options; `run` is what to call with them. Exits with 2 if not understood."""
    parser = argparse.ArgumentParser(prog="python -m talkinghead_lab", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("generate", help="make the video that a parameter file describes")
    command.add_argument("params", type=Path, help="YAML file with the request")
    command.add_argument(
        "-p", nargs=2, action="append", default=[], dest="overrides", metavar=("NAME", "VALUE"),
        help="set a parameter, YAML syntax; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--run", type=Path, dest="run_dir", help="the run's folder; an unfinished run is continued"
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.set_defaults(run=run_generate)
    command = commands.add_parser("verify", help="do a run again and compare; status 1 where it differs")
    command.add_argument("run_dir", type=Path, help="the folder of a finished run")
    command.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    command.set_defaults(run=run_verify)
    command = commands.add_parser("plan", help="tell whether a request fits into memory; status 1 where not")
    command.add_argument("params", type=Path, help="YAML file with the request")
    command.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    command.set_defaults(run=run_plan)
    command = commands.add_parser("sweep", help="make every run of a sweep; status 1 where one failed")
    command.add_argument("sweep", type=Path, help="YAML file with the sweep")
    command.add_argument("--out", type=Path, required=True, help="its folder; what is finished there stays")
    command.add_argument(
        "--workers", type=int, default=0, help="processes; unset: one for each GPU, or one in all"
    )
    command.add_argument("--retry-failed", action="store_true", help="run failed cells again")
    command.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's; local: a new one"
    )
    command.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    command.set_defaults(run=run_sweep)
    command = commands.add_parser("fetch", help="download the released weights (about 80 GB)")
    command.add_argument("folder", type=Path, help="where they go")
    command.set_defaults(run=run_fetch)
    return parser.parse_args(arguments)


def run_generate(options: argparse.Namespace) -> None:
    """Generate; the path of the video, or the result as JSON, is all that goes to stdout."""
    with gc_disabled():
        from talkinghead_lab.runs import parallel
        from talkinghead_lab.runs.generate import generate
    overrides = {name: _value(name, text) for name, text in options.overrides}
    params = GenerationParams.from_yaml(options.params, **overrides)
    if parallel.is_parallel():
        result = parallel.generate_in_parallel(params, options.run_dir)
    else:
        result = generate(params, options.run_dir)
    if result is None:  # another process of several has it
        return
    print(json.dumps(result.to_json()) if options.json else result.video_path)


def run_verify(options: argparse.Namespace) -> int:
    """Do a run again; the findings go to stdout, and the status is 0 where all is the same."""
    from talkinghead_lab.runs.verify import verify

    found = verify(options.run_dir)
    print(json.dumps(found.to_json()) if options.json else found)
    return 0 if found.identical else 1


def run_plan(options: argparse.Namespace) -> int:
    """Print the memory that a request needs; the status is 1 where it does not fit."""
    from talkinghead_lab.pipeline.plan import plan

    planned = plan(GenerationParams.from_yaml(options.params))
    print(json.dumps(planned.to_json()) if options.json else planned)
    return 1 if planned.fits is False else 0


def run_sweep(options: argparse.Namespace) -> int:
    """Run a sweep; its table's path goes to stdout, and the status is 0 where every run is finished."""
    from talkinghead_lab.sweeps import sweep

    table = sweep.run_sweep(
        sweep.Sweep.from_yaml(options.sweep),
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


def run_fetch(options: argparse.Namespace) -> None:
    """Download the released weights and print what to set."""
    from talkinghead_lab.weights.download import fetch_released

    for variable, folder in fetch_released(options.folder).items():
        print(f"export {variable}={folder}")


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"the value of `{name}` is not YAML ({error})", received=text) from None


if __name__ == "__main__":
    sys.exit(main())
