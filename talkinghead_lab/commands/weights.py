"""The commands `inventory`, `fetch` and `convert`: weight files."""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path

from talkinghead_lab.commands.overrides import add_overrides, overrides
from talkinghead_lab.errors import InvalidRequest, Stopped


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    command = commands.add_parser(
        "inventory", help="list weight files: what they hold, what is missing; exit status 1 if incomplete"
    )
    command.add_argument(
        "folder",
        nargs="?",
        help="folder with weight files; unset: those that WEIGHTS_DIR, or CKPT_DIR and others, name",
    )
    command.add_argument("--speakers", type=int, choices=(1, 2), default=1, help="number of speakers")
    add_overrides(command, "name a file, as `transformer`, or set `device` or `precision`, as in a request")
    command.add_argument("--json", action="store_true", help="print the inventory as one JSON object")
    command.set_defaults(run=run_inventory)
    command = commands.add_parser("fetch", help="download released weights, or check and complete them")
    command.add_argument("folder", type=Path, help="target folder")
    command.add_argument(
        "--variant", default="official", choices=("official", "fp8", "gguf-q8", "gguf-q4"),
        help="set of files: about 103, 31, 37 or 23 GB",
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
    command.add_argument(
        "--speakers", type=int, choices=(1, 2), default=1, help="number of speakers of the adapter to merge"
    )
    add_overrides(command, "name a file, as `transformer`, or LoRAs, as in a request")
    command.set_defaults(run=run_convert)


def run_inventory(options: argparse.Namespace) -> int:
    """Print which weight files there are and what is missing; return 0 if a generation can run, else 1."""
    from tqdm.auto import tqdm

    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.pipeline.inventory import inventory
    from talkinghead_lab.weights.locating import places

    given = overrides(options)
    is_released = options.folder or places("released", given)
    request = GenerationParams(
        **{
            "image_path": "sample:portrait",
            "audio_path": "sample:recording",
            "second_audio_path": "sample:recording-2" if options.speakers == 2 else None,
            "checkpoint": "released" if is_released else "embedded",
            "weights": options.folder,
        }
        | given
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

    fields = {"audio_path": "-", "image_path": "-", "weights": options.source, **overrides(options)}
    request = GenerationParams(**fields)
    scheduled = [lora.path for lora in request.loras if isinstance(lora.scale, tuple)]
    if scheduled:
        raise InvalidRequest(
            "a weight file holds merged LoRAs, each of one strength",
            received=f"a list as the scale of {scheduled[0]}",
            remedy="Give one number, or leave the LoRA to the request.",
            field="loras",
        )
    roles = ("transformer", "adapter")
    files = locate("released", options.speakers, request.weight_sources, roles)
    convert_transformer(files, lora_files(request), options.precision, options.target)
    print(options.target)
