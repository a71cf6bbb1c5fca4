"""The option `-p NAME VALUE`, which sets one field of a request."""

import argparse
from collections.abc import Sequence

from talkinghead_lab.commands.completion import complete_override

PROTECTION = " "  # an argument that begins with it is never taken for an option


def add_overrides(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add the option to a command; `meaning` is what its help says."""
    option = command.add_argument(
        "-p", nargs=2, action="append", default=[], dest="overrides", metavar=("NAME", "VALUE"),
        type=lambda text: text.removeprefix(PROTECTION),
        help=f"{meaning}: text as it is, lists as YAML or JSON; can be repeated",
    )  # fmt: skip
    option.completer = complete_override  # type: ignore[attr-defined]  # argcomplete's convention


def protected(arguments: Sequence[str]) -> list[str]:
    """Protect the two arguments after each `-p`: argparse takes a text such as `-man` for an option."""
    found, following = [], 0
    for argument in arguments:
        found.append(PROTECTION + argument if following else argument)
        following = following - 1 if following else 2 * (argument == "-p")
    return found


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The fields given with `-p`, as text that each field reads by its type."""
    from talkinghead_lab.foundation.parameter_text import Plain

    return {name: Plain(text) for name, text in options.overrides}
