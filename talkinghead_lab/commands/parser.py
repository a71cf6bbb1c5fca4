"""The command line as a whole."""

import argparse
import sys
from collections.abc import Sequence

from talkinghead_lab import __version__
from talkinghead_lab.commands import benchmark, generation, notebooks, people, runs, sweeps, weights
from talkinghead_lab.commands.completion import complete_if_requested
from talkinghead_lab.commands.overrides import protected
from talkinghead_lab.foundation.command_line import CommandParser


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has `run`, the function to call."""
    parser = CommandParser(
        prog="python -m talkinghead_lab",
        description="Generate, verify, plan and sweep audio-driven talking-head videos from a shell.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (generation, people, sweeps, runs, benchmark, notebooks, weights):
        group.add(commands)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `run` is the function to call. Exit with 2 on a usage error."""
    parser = command_parser()
    complete_if_requested(parser)
    return parser.parse_args(protected(sys.argv[1:] if arguments is None else arguments))
