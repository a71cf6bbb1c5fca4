"""The command `notebooks`: a copy of the notebooks and parameter files, to run and to change."""

import argparse
import filecmp
import shutil
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "notebooks", help="copy the notebooks into a folder, and the presets into params/ in it"
    )
    command.add_argument("folder", type=Path, help="target folder; made if it does not exist")
    command.add_argument("--overwrite", action="store_true", help="replace files that were changed there")
    command.set_defaults(run=run_notebooks)


def run_notebooks(options: argparse.Namespace) -> None:
    """Copy the notebooks and print their paths."""
    for path in copy_notebooks(options.folder, overwrite=options.overwrite):
        print(path)


def copy_notebooks(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy the notebooks into a folder and the presets into `params/` in it; return the notebooks' paths.

    Raises:
        OutputError: a file is there and differs, and `overwrite` is not set: then nothing is copied; or the
            folder cannot be written.
    """
    from talkinghead_lab.errors import OutputError
    from talkinghead_lab.foundation.files import atomic_path, output_errors
    from talkinghead_lab.foundation.presets import FOLDER, NOTEBOOKS, shipped_folder

    notebooks = {folder / file.name: file for file in sorted(shipped_folder(NOTEBOOKS).glob("*.ipynb"))}
    shipped = shipped_folder(FOLDER)
    presets = {folder / FOLDER / file.relative_to(shipped): file for file in sorted(shipped.rglob("*.yaml"))}
    copies = notebooks | presets
    copies = {target: source for target, source in copies.items() if not _is_copy(target, source)}
    changed = [target for target in copies if target.is_symlink() or target.exists()]
    if changed and not overwrite:
        raise OutputError(
            "files there differ from those that would be copied; nothing was copied",
            received=", ".join(map(str, changed)),
            remedy="Choose another folder, or replace them with --overwrite.",
        )
    with output_errors("the notebooks cannot be copied", folder):
        for target, source in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target, overwrite=True) as temporary:
                shutil.copyfile(source, temporary)
    return list(notebooks)


def _is_copy(target: Path, source: Path) -> bool:
    return target.is_file() and filecmp.cmp(source, target, shallow=False)
