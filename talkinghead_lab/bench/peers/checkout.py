"""Import one module of a checkout of another project, without the rest of it and without what it lacks."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from talkinghead_lab.bench.sizes import RandomInputs
from talkinghead_lab.errors import InvalidRequest


class Peer(Protocol):
    """One implementation with the weights of ours.

    `name` is how rows call it, `stated` what they must say about it, such as stand-ins for absent packages.
    """

    name: str
    stated: dict[str, Any]

    def velocity(self, inputs: RandomInputs) -> Tensor:
        """Velocity [1, C, T, h, w], as ours predicts it."""
        ...


def checkout_folder(variable: str, file: str) -> Path:
    """The checkout that an environment variable names.

    Args:
        variable: name of the variable.
        file: a file that the checkout must have.

    Raises:
        InvalidRequest: it is unset, or the folder does not have the file.
    """
    folder = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not (folder / file).is_file():
        raise InvalidRequest(
            "no checkout to compare with",
            received=os.environ.get(variable, "nothing"),
            allowed=f"{variable}=FOLDER, where FOLDER has {file}",
        )
    return folder


def commit_of(folder: Path) -> str:
    """Short id of the commit that is checked out, or `unknown` outside of git."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


class Absent(ModuleType):
    """Stands in for a module that is imported but never used.

    Any attribute exists, can be called and used as a decorator, and is another object of this kind.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **keywords: Any) -> "Absent":
        """Itself, as a decorator must be something."""
        return self


class AbsentPackages(MetaPathFinder, Loader):
    """Finds every module of some packages, as `Absent`."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec for modules of these packages."""
        is_mine = fullname.partition(".")[0] in self.packages
        return ModuleSpec(fullname, self, is_package=True) if is_mine else None

    def create_module(self, spec: ModuleSpec) -> Absent:
        """An empty module."""
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


@contextmanager
def modules_of(
    folder: Path, packages: Sequence[str], optional: Sequence[str], given: Mapping[str, ModuleType]
) -> Iterator[list[str]]:
    """Make packages of a checkout importable, and remove all of its modules afterwards.

    Args:
        folder: the checkout.
        packages: names of its packages whose `__init__` is left out, because it imports everything.
        optional: packages that are imported but not used here; absent ones are replaced by `Absent`.
        given: modules that replace others whatever is installed.

    Yields:
        The optional packages that are absent.
    """
    before = dict(sys.modules)
    absent = [name for name in optional if importlib.util.find_spec(name) is None]
    sys.meta_path.append(finder := AbsentPackages(absent))
    for name in packages:
        sys.modules[name] = bare = ModuleType(name)
        bare.__path__ = [str(folder.joinpath(*name.split(".")))]
    sys.modules.update(given)
    roots = {name.partition(".")[0] for name in (*packages, *absent, *given)}
    try:
        yield absent
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})
