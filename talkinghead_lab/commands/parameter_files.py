"""The argument of commands that take a parameter file or the name of a preset."""

import argparse
from functools import partial
from pathlib import Path

from talkinghead_lab.commands.completion import complete_preset
from talkinghead_lab.foundation.presets import preset_names


def add_parameter_file(command: argparse.ArgumentParser, name: str, *, sweeps: bool) -> None:
    """Add the argument to a command; its help lists the presets that are sweeps, or those that are not."""
    what = "sweep" if sweeps else "request"
    listed = ", ".join(preset_names(sweeps=sweeps)).replace("%", "%%")
    argument = command.add_argument(
        name, type=Path, help=f"YAML or JSON file of the {what}, or the name of a preset: {listed}"
    )
    argument.completer = partial(complete_preset, sweeps=sweeps)  # type: ignore[attr-defined]  # argcomplete's
