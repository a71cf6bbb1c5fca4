"""The commands `generate`, `verify` and `plan`: one request."""

import argparse
import json
from pathlib import Path

from talkinghead_lab.commands.overrides import add_overrides, overrides
from talkinghead_lab.commands.parameter_files import add_parameter_file
from talkinghead_lab.foundation.imports import gc_disabled


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    command = commands.add_parser("generate", help="generate the video of a parameter file")
    add_parameter_file(command, "params", sweeps=False)
    add_overrides(command, "override a parameter")
    command.add_argument(
        "--run", type=Path, dest="run_dir", help="folder of the run; an unfinished run in it is resumed"
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.set_defaults(run=run_generate)
    command = commands.add_parser(
        "verify", help="generate a run again and compare it; exit status 1 if it differs"
    )
    command.add_argument("run_dir", type=Path, help="folder of a finished run")
    command.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    command.set_defaults(run=run_verify)
    command = commands.add_parser(
        "plan",
        help="predict the memory of a request (exit status 1 if it does not fit), or what a sweep will show",
    )
    add_parameter_file(command, "params", sweeps=False)
    add_overrides(command, "override a parameter")
    command.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="folder of a finished sweep, from which to predict what the planned one will show",
    )
    command.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    command.set_defaults(run=run_plan)


def run_generate(options: argparse.Namespace) -> None:
    """Generate a video; print only its path, or the result as JSON, to stdout."""
    with gc_disabled():
        from talkinghead_lab.params import GenerationParams
        from talkinghead_lab.runs import parallel
        from talkinghead_lab.runs.generate import generate
    params = GenerationParams.from_yaml(options.params, **overrides(options))
    if parallel.is_parallel():
        result = parallel.generate_in_parallel(params, options.run_dir)
    else:
        result = generate(params, options.run_dir)
    if result is None:  # another process of the group prints it
        return
    print(json.dumps(result.to_json()) if options.json else result.video_path)


def run_verify(options: argparse.Namespace) -> int:
    """Generate a run again and print the comparison; return 0 if both are identical, else 1."""
    from talkinghead_lab.runs.verify import verify

    found = verify(options.run_dir)
    print(json.dumps(found.to_json()) if options.json else found)
    return 0 if found.identical else 1


def run_plan(options: argparse.Namespace) -> int:
    """Print the memory that a request needs; return 1 if it does not fit, else 0. Print a sweep's plan."""
    from talkinghead_lab.errors import InvalidRequest
    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.pipeline.plan import plan
    from talkinghead_lab.sweeps import definition
    from talkinghead_lab.sweeps.plan import plan_sweep

    if definition.is_sweep(options.params):
        sweep = definition.Sweep.from_yaml(options.params, overrides(options))
        foreseen = plan_sweep(sweep, options.runs)
        print(json.dumps(foreseen.to_json()) if options.json else foreseen)
        return 0
    if options.runs is not None:
        raise InvalidRequest("--runs is for a sweep", received=str(options.params))
    planned = plan(GenerationParams.from_yaml(options.params, **overrides(options)))
    print(json.dumps(planned.to_json()) if options.json else planned)
    return 1 if planned.fits is False else 0
