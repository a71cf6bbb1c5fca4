"""The parser of every command line of the package."""

import argparse
from pathlib import Path
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Refuses an empty path, as of a variable that is not set: Python takes it for the working directory."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, _path)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a path is needed, not an empty text")
    return Path(text)
