"""Generate, verify, plan and sweep audio-driven talking-head videos from a shell."""

import argparse
import atexit
import gc
import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from talkinghead_lab import __version__
from talkinghead_lab.errors import InvalidRequest, Stopped, TalkingHeadError
from talkinghead_lab.foundation.imports import gc_disabled

PROTECTION = " "  # an argument that begins with it is never taken for an option


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for invalid input, 1 for a failure, 130 if interrupted or terminated."""
    options = parse(arguments)
    atexit.register(gc.freeze)  # otherwise Python searches all of PyTorch for garbage when it ends: a second
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        from talkinghead_lab.foundation.threads import prepare_threads

        prepare_threads()
        with _terminated_like_ctrl_c():
            return options.run(options) or 0
    except TalkingHeadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        # The usual cause: the checkout's package found by a Python that `make setup` did not prepare.
        print(
            f"talkinghead_lab: the package {error.name!r} is not installed in this Python. "
            "Run `make setup`, then `source .venv/bin/activate`.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Stopped; finished chunks stay in the run's folder.", file=sys.stderr)
        return 130


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """While the block runs, a signal to end the process stops it like Ctrl-C, which removes partial files.

    A signal that is ignored, as under nohup, stays so.
    """
    endings = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in endings:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in endings:
            signal.signal(number, signal.SIG_DFL)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `run` is the function to call. Exit with 2 on a usage error."""
    parser = argparse.ArgumentParser(prog="python -m talkinghead_lab", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("generate", help="generate the video of a parameter file")
    command.add_argument("params", type=Path, help="YAML or JSON file of the request")
    _add_overrides(command, "override a parameter")
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
        "plan", help="predict the memory a request needs; exit status 1 if it does not fit"
    )
    command.add_argument("params", type=Path, help="YAML or JSON file of the request")
    _add_overrides(command, "override a parameter")
    command.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    command.set_defaults(run=run_plan)
    command = commands.add_parser("sweep", help="generate every run of a sweep; exit status 1 if one failed")
    command.add_argument("sweep", type=Path, help="YAML or JSON file of the sweep")
    _add_overrides(command, "override a parameter of the sweep's base")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of the sweep; finished runs in it are reused"
    )
    command.add_argument(
        "--workers", type=int, default=0, help="number of processes; unset: one per GPU, or a single one"
    )
    command.add_argument("--retry-failed", action="store_true", help="retry cells that failed")
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster; auto: the one of this machine; local: start one",
    )
    command.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    command.set_defaults(run=run_sweep)
    _add_weight_commands(commands)
    return parser.parse_args(_protected(sys.argv[1:] if arguments is None else arguments))


def _add_weight_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "inventory", help="list weight files: what they hold, what is missing; exit status 1 if incomplete"
    )
    command.add_argument(
        "folder",
        nargs="?",
        help="folder with weight files; unset: what WEIGHTS_DIR or CKPT_DIR and others name",
    )
    command.add_argument("--speakers", type=int, choices=(1, 2), default=1, help="number of speakers")
    _add_overrides(command, "name a file, as `transformer`, or set `device` or `precision`, as in a request")
    command.add_argument("--json", action="store_true", help="print the inventory as one JSON object")
    command.set_defaults(run=run_inventory)
    command = commands.add_parser("fetch", help="download released weights, or check and complete them")
    command.add_argument("folder", type=Path, help="target folder")
    command.add_argument(
        "--variant", default="official", choices=("official", "fp8", "gguf-q8", "gguf-q4"),
        help="the set of files: about 103, 31, 37 or 23 GB",
    )  # fmt: skip
    command.add_argument("--yes", action="store_true", help="download without asking")
    command.set_defaults(run=run_fetch)
    command = commands.add_parser("convert", help="write transformer, adapter and LoRAs into one weight file")
    command.add_argument("source", type=Path, help="folder of weight files, searched by content")
    command.add_argument("target", type=Path, help="the .safetensors file to write")
    command.add_argument(
        "--precision", choices=("bf16", "fp8"), required=True,
        help="bf16; or the linear layers of blocks in fp8, as `precision: fp8` runs them",
    )  # fmt: skip
    command.add_argument("--speakers", type=int, choices=(1, 2), default=1, help="whose adapter to merge")
    _add_overrides(command, "name a file, as `transformer`, or LoRAs, as in a request")
    command.set_defaults(run=run_convert)


def _add_overrides(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument(
        "-p", nargs=2, action="append", default=[], dest="overrides", metavar=("NAME", "VALUE"),
        type=lambda text: text.removeprefix(PROTECTION),
        help=f"{meaning}: text as it is, lists as YAML or JSON; can be repeated",
    )  # fmt: skip


def _protected(arguments: Sequence[str]) -> list[str]:
    """Protect the two arguments after each `-p`: argparse takes a text such as `-man` for an option."""
    protected, following = [], 0
    for argument in arguments:
        protected.append(PROTECTION + argument if following else argument)
        following = following - 1 if following else 2 * (argument == "-p")
    return protected


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    from talkinghead_lab.foundation.parameter_text import Plain

    return {name: Plain(text) for name, text in options.overrides}


def run_generate(options: argparse.Namespace) -> None:
    """Generate a video; print only its path, or the result as JSON, to stdout."""
    with gc_disabled():
        from talkinghead_lab.params import GenerationParams
        from talkinghead_lab.runs import parallel
        from talkinghead_lab.runs.generate import generate
    params = GenerationParams.from_yaml(options.params, **_overrides(options))
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
    """Print the memory that a request needs; return 1 if it does not fit, else 0."""
    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.pipeline.plan import plan

    planned = plan(GenerationParams.from_yaml(options.params, **_overrides(options)))
    print(json.dumps(planned.to_json()) if options.json else planned)
    return 1 if planned.fits is False else 0


def run_sweep(options: argparse.Namespace) -> int:
    """Run a sweep and print the path of its table; return 0 if every run finished, else 1."""
    from talkinghead_lab.sweeps import sweep

    table = sweep.run_sweep(
        sweep.Sweep.from_yaml(options.sweep, _overrides(options)),
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


def run_inventory(options: argparse.Namespace) -> int:
    """Print which weight files there are and what is missing; return 0 if a generation can run, else 1."""
    from tqdm.auto import tqdm

    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.pipeline.inventory import inventory
    from talkinghead_lab.weights.locating import places

    overrides = _overrides(options)
    is_released = options.folder or places("released", overrides)
    request = GenerationParams(
        **{
            "image_path": "sample:portrait",
            "audio_path": "sample:recording",
            "second_audio_path": "sample:recording-2" if options.speakers == 2 else None,
            "checkpoint": "released" if is_released else "embedded",
            "weights": options.folder,
        }
        | overrides
    )
    # A bar appears on a terminal after two seconds.
    progress = partial(tqdm, unit="file", delay=2, leave=False, disable=None)
    found = inventory(request, progress)
    print(json.dumps(found.to_json()) if options.json else found)
    return 0 if found.is_complete else 1


def run_fetch(options: argparse.Namespace) -> int:
    """Download weights and print the environment variable to set; return 1 if the user said no, else 0."""
    from tqdm.auto import tqdm

    from talkinghead_lab.weights.download import fetch
    from talkinghead_lab.weights.locating import WEIGHTS_VARIABLE

    def confirm(plan: fetch.Plan) -> bool:
        print(plan, file=sys.stderr)
        return options.yes or _asked("Download? [y/N] ")

    try:
        complete = fetch.fetch(options.folder, options.variant, confirm, partial(tqdm.write, file=sys.stderr))
    except KeyboardInterrupt:
        raise Stopped("the download stays as it is", remedy="The same command continues it.") from None
    if not complete:
        print("Nothing was downloaded.", file=sys.stderr)
        return 1
    print(f"export {WEIGHTS_VARIABLE}={shlex.quote(str(options.folder))}")
    return 0


def _asked(question: str) -> bool:
    """The user's answer.

    Raises:
        InvalidRequest: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise InvalidRequest("there is no terminal to confirm the download on", remedy="Add --yes.")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def run_convert(options: argparse.Namespace) -> None:
    """Write one weight file and print its path."""
    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.pipeline.request import lora_files
    from talkinghead_lab.weights.convert import convert_transformer
    from talkinghead_lab.weights.locating import locate

    fields = {"audio_path": "-", "image_path": "-", "weights": options.source, **_overrides(options)}
    request = GenerationParams(**fields)
    roles = ("transformer", "adapter")
    files = locate("released", options.speakers, request.weight_sources, roles)
    convert_transformer(files, lora_files(request), options.precision, options.target)
    print(options.target)


if __name__ == "__main__":
    sys.exit(main())
