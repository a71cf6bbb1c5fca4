"""List all weight files of a checkpoint: what each holds, whether it runs here, and what is missing."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.weights.checkpoints import FLOAT32_NETWORKS, load_network, load_tokenizer
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.formats.network_file import read_network
from talkinghead_lab.weights.layer_checks import kind_of, multiply_layers
from talkinghead_lab.weights.locating import CheckpointFiles, located, places
from talkinghead_lab.weights.search import Candidate, Progress, candidate, candidates, fitting

PAIR = ("transformer", "adapter")  # one network, built from both
# States of files and roles, in the order in which files are listed. What cannot be built for want of another
# file is unchecked.
USED, AMBIGUOUS, UNCHECKED, USABLE, UNUSABLE = "used", "ambiguous", "unchecked", "usable", "unusable"
COMPLETE, MISSING = "complete", "missing"

Identity = frozenset[str]


@dataclass(frozen=True)
class FileRow:
    """A weight file, or all shards of one.

    Args:
        path: of the first shard, relative to the folder that it was found in.
        shards: number of files.
        roles: what it can be used for.
        layout: whose names its tensors have.
        stored: number of tensors by the way in which they are stored.
        gib: size.
        state: `used`; `usable`: it works and is not needed; `ambiguous`, `unchecked` or `unusable`.
        error: largest relative error of a product of its layers; None: nothing was multiplied.
        reason: why it is not used.
        next: what to do.
    """

    path: str
    shards: int
    roles: tuple[str, ...]
    layout: str
    stored: Mapping[str, int]
    gib: float
    state: str
    error: float | None
    reason: str
    next: str


@dataclass(frozen=True)
class RoleRow:
    """A role of `ROLES`, or the tokenizer.

    Args:
        role: its name.
        state: `complete`, `missing`, `ambiguous`, `unchecked` or `unusable`.
        reason: why it is not complete.
        next: what to do.
    """

    role: str
    state: str
    reason: str
    next: str


@dataclass(frozen=True)
class Machine:
    """How networks are to run; see `load_settings.LoadSettings`."""

    device: torch.device
    compute: torch.dtype
    fp8_matmuls: bool


def listing(
    checkpoint: str,
    speakers: int,
    sources: Mapping[str, str | None],
    machine: Machine,
    progress: Progress = iter,
) -> tuple[list[FileRow], list[RoleRow]]:
    """List the files of a checkpoint, and its roles.

    A file counts as used or usable only if its network can be built with it, and layers of every kind in it
    have been multiplied on the machine. Reads headers, and a few megabytes of every such file.

    Args:
        checkpoint, speakers, sources: see `locating.locate`.
        machine: that is to run the networks.
        progress: shows how many files are done.

    Raises:
        CheckpointError: `weights` is no folder.
    """
    folders = places(checkpoint, sources)
    searched: list[Candidate] = []
    for name, path in folders.items():
        if path.is_dir() or name == "weights":
            searched += candidates(path, progress)
    files = located(searched, folders, speakers, sources)
    used = {role: paths for role in ROLES if (paths := _of_role(files, role))}
    found = {_identity(each.paths): each for each in searched}
    for paths in used.values():
        if _identity(paths) not in found:  # named, or beside the folders
            found[_identity(paths)] = candidate(paths)
    rivals = {role: _rivals(role, searched, files, folders, speakers) for role in ROLES}
    checks = _Checks(files, used, tuple(found.values()), machine)
    results = {key: checks.of(each) for key, each in progress([*found.items()])}
    rows = [_file_row(each, results[key], files, used, rivals, folders) for key, each in found.items()]
    rows.sort(key=lambda row: ((USED, AMBIGUOUS, UNCHECKED, USABLE, UNUSABLE).index(row.state), row.path))
    return rows, [
        _role_row(role, files, used, rivals, results, "weights" in folders) for role in (*ROLES, "tokenizer")
    ]


def with_remedy(reason: str, remedy: str) -> str:
    """A reason and what to do, as an error shows them."""
    return f"{reason} {remedy}".strip()


@dataclass(frozen=True)
class _Result:
    """What checking a file gave: the largest error of a matmul, why it cannot be used, and what it stores."""

    error: float | None
    problem: CheckpointError | None = None
    is_built: bool = True
    stored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Checks:
    """Checks files, each as it would be used.

    Args:
        files: of the checkpoint.
        used: those of each role.
        found: all files.
        machine: that is to run the networks.
    """

    files: CheckpointFiles
    used: Mapping[str, tuple[Path, ...]]
    found: Sequence[Candidate]
    machine: Machine

    def of(self, each: Candidate) -> _Result:
        """Multiply layers of a file, and build its network."""
        if each.content is None:
            return _Result(None, each.problem)
        tensors = read_network(*each.paths).tensors
        stored = Counter(map(kind_of, tensors.values()))
        name = _network_of(each.roles[0])
        machine = self.machine
        compute = torch.float32 if name in FLOAT32_NETWORKS else machine.compute
        in_fp8 = machine.fp8_matmuls and name == "transformer"
        try:
            error = multiply_layers(tensors, each.paths[0].name, compute, machine.device, in_fp8)
        except CheckpointError as problem:
            return _Result(None, problem, stored=stored)
        files = self._with(each)
        if files is None:
            return _Result(error, is_built=False, stored=stored)
        built = _problem(partial(load_network, name, files, machine.compute, "meta"))
        return _Result(error, built, stored=stored)

    def _with(self, each: Candidate) -> CheckpointFiles | None:
        """The checkpoint with a file in its roles; None if the other file of its network is missing."""
        changed = {role: each.paths for role in each.roles if self.used.get(role) != each.paths}
        for role in PAIR if each.roles[0] in PAIR else ():
            if role not in each.roles and role not in self.used:
                others = [other.paths for other in self.found if other.roles == (role,)]
                if not others:
                    return None
                changed[role] = others[0]
        problems = {role: problem for role, problem in self.files.problems.items() if role not in changed}
        return replace(self.files, named={**self.files.named, **changed}, problems=problems)


def _file_row(
    each: Candidate,
    result: _Result,
    files: CheckpointFiles,
    used: Mapping[str, tuple[Path, ...]],
    rivals: Mapping[str, Sequence[Identity]],
    folders: Mapping[str, Path],
) -> FileRow:
    path, identity = each.paths[0], _identity(each.paths)
    folder = next((f for f in folders.values() if f != path and path.is_relative_to(f)), path.parent)
    disputed = [role for role in each.roles if identity in rivals[role]]
    state, problem = USABLE, result.problem
    if problem is not None:
        state = UNUSABLE
    elif disputed:
        state, problem = AMBIGUOUS, files.problems[disputed[0]]
    elif not result.is_built:
        state = UNCHECKED
    elif any(_identity(used.get(role, ())) == identity for role in each.roles):
        state = USED
    return FileRow(
        path=str(path.relative_to(folder)),
        shards=len(each.paths),
        roles=each.roles,
        layout=each.content.layout if each.content else "",
        stored=dict(result.stored),
        gib=sum(map(_nbytes, each.paths)) / GIB,
        state=state,
        error=result.error,
        reason=_reason(problem).replace(f": received {path}", "").replace(f"{folder}{os.sep}", ""),
        next=(problem and problem.remedy) or "",
    )


def _role_row(
    role: str,
    files: CheckpointFiles,
    used: Mapping[str, tuple[Path, ...]],
    rivals: Mapping[str, Sequence[Identity]],
    results: Mapping[Identity, _Result],
    is_searched: bool,
) -> RoleRow:
    state = COMPLETE
    if role == "tokenizer":
        problem = _problem(partial(load_tokenizer, files, 1))
    elif role in used:
        result = results[_identity(used[role])]
        problem = result.problem
        state = COMPLETE if result.is_built else UNCHECKED
    else:
        problem = _problem(partial(files.of_role, role))
    if problem is not None:
        is_there = role in used or (role == "tokenizer" and role not in files.problems)
        state = UNUSABLE if is_there else AMBIGUOUS if rivals.get(role) else MISSING
    # After a search, the rest of the error is in the rows of the files.
    reason = f"{problem.problem}." if problem and is_searched and state == MISSING else _reason(problem)
    return RoleRow(role, state, reason, (problem and problem.remedy) or "")


def _network_of(role: str) -> str:
    return {"adapter": "transformer", "vae": "video autoencoder"}.get(role, role.replace("_", " "))


def _of_role(files: CheckpointFiles, role: str) -> tuple[Path, ...]:
    try:
        return files.of_role(role)
    except Exception:  # which `_role_row` reports
        return ()


def _identity(paths: Sequence[Path]) -> Identity:
    return frozenset(map(os.path.realpath, paths))


def _nbytes(path: Path) -> int:
    """Size of a file; 0 if it is missing or may not be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _rivals(
    role: str,
    searched: Sequence[Candidate],
    files: CheckpointFiles,
    folders: Mapping[str, Path],
    speakers: int,
) -> list[Identity]:
    """The files of which only one can fill a role; empty if it is clear which."""
    if "weights" not in folders or role not in files.problems:
        return []
    try:
        fit = fitting(role, searched, folders["weights"], speakers, files.named.get("transformer", ()))
    except CheckpointError:
        return []
    return [_identity(each.paths) for each in fit]


def _problem(call: Callable[[], object]) -> CheckpointError | None:
    """The error of a call, if there is one."""
    try:
        call()
    except CheckpointError as problem:
        return problem
    except Exception as error:  # contradictions in a file show in many kinds of errors
        return CheckpointError(f"the files cannot be used ({type(error).__name__}: {str(error)[:200]})")
    return None


def _reason(problem: CheckpointError | None) -> str:
    """The text of an error without its remedy."""
    return "" if problem is None else str(problem).removesuffix(f" {problem.remedy}")
