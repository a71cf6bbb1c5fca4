"""The command `benchmark`: any system's videos of a fixed list of clips, scored and tabulated."""

import argparse
from functools import partial
from pathlib import Path

from talkinghead_lab.commands.completion import complete_preset
from talkinghead_lab.commands.overrides import add_overrides, overrides
from talkinghead_lab.commands.sweeps import add_workers


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    benchmark = commands.add_parser(
        "benchmark", help="score systems on a list of clips, and compare them in a table"
    )
    actions = benchmark.add_subparsers(required=True, metavar="ACTION")
    _add_manifest(actions)
    command = actions.add_parser("run", help="generate the videos of a request for every clip and score them")
    _add_clips(command)
    method = command.add_argument(
        "--method", type=Path, action="append", required=True, metavar="PARAMS",
        help="YAML file of a request, or a preset's name; can be repeated",
    )  # fmt: skip
    method.completer = partial(complete_preset, sweeps=False)  # type: ignore[attr-defined]  # argcomplete's
    add_overrides(command, "override a parameter of every request")
    _add_out(command)
    command.set_defaults(run=run_methods)
    command = actions.add_parser("score", help="score videos made elsewhere, named after the clips")
    _add_clips(command)
    command.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    command.add_argument("--name", required=True, help="name of the system in the table")
    _add_out(command)
    command.add_argument(
        "--codec-check", action="store_true",
        help="also score every video encoded once more, as NAME-reencoded, and print how far measures move",
    )  # fmt: skip
    command.set_defaults(run=run_score)
    command = actions.add_parser("table", help="print the table; write Markdown, LaTeX, CSV and Parquet")
    command.add_argument("folder", type=Path, help="folder of the benchmark")
    command.add_argument("--base", help="system that others are compared with; unset: the first by name")
    command.set_defaults(run=run_table)
    command = actions.add_parser("report", help="write the table with pictures and videos as one HTML file")
    command.add_argument("folder", type=Path, help="folder of the benchmark")
    command.add_argument(
        "--base", help="system whose worst and best clips are shown; unset: the first by name"
    )
    command.add_argument("--measure", help="measure that ranks the clips; unset: one of lips and sound")
    command.add_argument("--against", help="measure beside it in the scatter plot; unset: identity")
    command.set_defaults(run=run_report)


def _add_clips(command: argparse.ArgumentParser) -> None:
    command.add_argument("manifest", type=Path, help="YAML file of the clips")
    command.add_argument(
        "--clips", type=Path, metavar="FOLDER",
        help="folder of the clips, or folder to draw them into; unset: as the manifest says",
    )  # fmt: skip


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="folder of the benchmark")
    add_workers(command)


def _add_manifest(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = actions.add_parser("manifest", help="list the clips of a folder, or draw presenters into it")
    command.add_argument(
        "kind", choices=("folder", "hdtf", "celebv-hq", "emtd", "drawn"),
        help="folder: any videos; drawn: presenters to draw; else a dataset, whose names tell the person",
    )  # fmt: skip
    command.add_argument("folder", type=Path, help="folder of the videos")
    command.add_argument("--out", type=Path, required=True, help="the YAML file to write")
    command.add_argument("--name", help="name of the benchmark; unset: the folder's")
    command.add_argument("--seconds", type=float, default=4.0, help="length of every clip (4)")
    command.add_argument(
        "--identity",
        help="folder: regular expression whose first group in a file's name is the person; unset: all but a "
        "number at the end",
    )
    command.add_argument("--identities", type=int, default=40, help="drawn: number of presenters (40)")
    command.add_argument("--clips-each", type=int, default=1, help="drawn: clips of each presenter (1)")
    command.add_argument(
        "--seed", type=int, default=1, help="drawn: seed of sentences, voices and motion (1)"
    )
    command.set_defaults(run=run_manifest)


def run_manifest(options: argparse.Namespace) -> None:
    """Write a manifest and print its path."""
    from talkinghead_lab.errors import InvalidRequest
    from talkinghead_lab.evaluation.drawn import draw_clips
    from talkinghead_lab.evaluation.manifest import DATASETS, IDENTITY, Maker, from_folder

    if options.identity and options.kind != "folder":
        raise InvalidRequest(
            "--identity is for the kind `folder`", received=f"{options.identity} for {options.kind}"
        )

    if options.kind == "drawn":
        seeds = {name: getattr(options, name) for name in ("identities", "clips_each", "seconds", "seed")}
        manifest = draw_clips(options.folder, Maker(kind="drawn", **seeds))
    else:
        identity = DATASETS.get(options.kind) or options.identity or IDENTITY
        name = options.name or options.folder.resolve().name
        manifest = from_folder(options.folder, name, options.seconds, identity)
    manifest.write(options.out)
    print(options.out)


def run_methods(options: argparse.Namespace) -> int:
    """Generate and score; print the folder; return 1 if a video failed, else 0."""
    from talkinghead_lab.evaluation.drawn import open_manifest
    from talkinghead_lab.evaluation.systems import Benchmark, check_names
    from talkinghead_lab.request_text import read_yaml

    check_names([method.stem for method in options.method])
    manifest = open_manifest(options.manifest, options.clips)
    benchmark = Benchmark(manifest, options.out, workers=options.workers, ray_address=options.ray)
    scores = [
        score
        for method in options.method
        for score in benchmark.generate(method.stem, read_yaml(method) | overrides(options))
    ]
    print(options.out)
    return int(any(score.failure for score in scores))


def run_score(options: argparse.Namespace) -> int:
    """Score videos; print the folder; return 1 if a video failed, else 0."""
    from talkinghead_lab.evaluation.drawn import open_manifest
    from talkinghead_lab.evaluation.systems import Benchmark
    from talkinghead_lab.evaluation.table import codec_effect

    manifest = open_manifest(options.manifest, options.clips)
    benchmark = Benchmark(manifest, options.out, workers=options.workers, ray_address=options.ray)
    scores = benchmark.score(options.name, options.videos)
    if options.codec_check:
        scores += benchmark.codec_check(options.name, options.videos)
        print(codec_effect(options.out, options.name))
    print(options.out)
    return int(any(score.failure for score in scores))


def run_table(options: argparse.Namespace) -> None:
    """Print the table and write its files."""
    from talkinghead_lab.evaluation import table
    from talkinghead_lab.evaluation.published import published
    from talkinghead_lab.evaluation.systems import benchmark_name

    rows = table.benchmark_table(options.folder, options.base)
    others = published(benchmark_name(options.folder))
    table.write_table(rows, options.folder, others)
    print(table.to_markdown(rows, others), end="")


def run_report(options: argparse.Namespace) -> None:
    """Write the report and print its path."""
    from talkinghead_lab.figures.benchmark_report import write_report

    print(write_report(options.folder, options.base, options.measure, options.against))
