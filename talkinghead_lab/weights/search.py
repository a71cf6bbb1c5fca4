"""Search a folder for the weight files of the model: by what they hold, not by what they are called."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.weights.formats.names.hints import doubt
from talkinghead_lab.weights.formats.names.lookalikes import WANTED
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.formats.network_file import NetworkContent, network_content
from talkinghead_lab.weights.formats.shards import with_shards

SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf"}
# Released adapters for one and for two speakers have equal headers; only their paths tell them apart.
SPEAKERS = {1: re.compile("single", re.IGNORECASE), 2: re.compile("multi(?!talk)", re.IGNORECASE)}
# The tokenizer of umT5, which the package holds, and the rows of its embedding in the released file.
UMT5_TOKENIZER = EMBEDDED_FOLDER / "umt5" / "tokenizer.json.xz"
UMT5_VOCABULARY = 256_384

Roles = Mapping[str, tuple[Path, ...]]
# Passes items on while it shows how many are done.
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Candidate:
    """A weight file, or all shards of one.

    Args:
        paths: where it is.
        content: what it holds; None if it cannot be used.
        problem: why it cannot be used.
    """

    paths: tuple[Path, ...]
    content: NetworkContent | None
    problem: CheckpointError | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """What it can be used for."""
        return () if self.content is None else self.content.roles


def candidates(folder: Path, progress: Progress = iter) -> list[Candidate]:
    """Look at every weight file below a folder; links are followed. Reads headers only.

    Raises:
        CheckpointError: there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(
            "`weights` names no folder",
            received=str(folder),
            remedy="Name the folder that holds the weight files; `transformer`, `vae`, … name single files.",
        )
    found, broken = {}, []
    for path in sorted(_files(folder, SUFFIXES)):
        try:
            paths = with_shards(path)
        except CheckpointError as problem:
            broken.append(Candidate((path,), None, problem))
            continue
        # `Path.resolve` raises on links that lead to themselves.
        found[tuple(map(os.path.realpath, paths))] = paths
    return [*map(candidate, progress([*found.values()])), *broken]


def has_weights(path: Path) -> bool:
    """Whether a path is a file, or a folder with a weight file in or below it."""
    return path.is_file() or any(_files(path, SUFFIXES))


def candidate(paths: tuple[Path, ...]) -> Candidate:
    """Look at one weight file, or at all shards of one."""
    try:
        return Candidate(paths, network_content(*paths))
    except CheckpointError as problem:
        return Candidate(paths, None, problem)
    except Exception as error:  # a file that is made to look like another must not hide the others
        what = f"the file cannot be read ({type(error).__name__}: {error})"
        return Candidate(paths, None, CheckpointError(what, received=str(paths[0])))


def _files(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in suffixes)


def chosen(
    found: Sequence[Candidate], folder: Path, speakers: int, named: Roles, roles: Collection[str] = ROLES
) -> tuple[dict[str, tuple[Path, ...]], dict[str, CheckpointError]]:
    """Choose the files of roles, and the tokenizer of the text encoder, from those found in a folder.

    Args:
        found: the candidates.
        folder: where they were found, for errors.
        speakers: 1 or 2.
        named: files that the request names; they are not searched for.
        roles: the roles to fill; a transformer comes before its adapter.

    Returns:
        The files by role, and for all other roles the error that no file, or several, could fill it.
    """
    files, problems = dict(named), {}
    for role in roles:
        if role in files:
            continue
        try:
            fit = fitting(role, found, folder, speakers, files.get("transformer", ()))
            if len(fit) != 1:
                raise _several(role, folder, fit) if fit else _none(role, folder, found)
            files[role] = fit[0].paths
        except CheckpointError as problem:
            problems[role] = problem
    if "text_encoder" not in roles:
        return files, problems
    try:
        files["tokenizer"] = (tokenizer_of(files, problems, folder),)
    except CheckpointError as problem:
        problems["tokenizer"] = problem
    return files, problems


def fitting(
    role: str, found: Sequence[Candidate], folder: Path, speakers: int, transformer: tuple[Path, ...]
) -> list[Candidate]:
    """The candidates that could fill a role, with the transformer's files already chosen.

    Raises:
        CheckpointError: all are for another number of speakers, or another model by their paths.
    """
    fit = _undoubted(role, [candidate for candidate in found if role in candidate.roles], folder)
    return _for_speakers(fit, speakers, transformer, folder) if role == "adapter" else fit


def _undoubted(role: str, fitting: list[Candidate], folder: Path) -> list[Candidate]:
    """The candidates without those whose paths say that they are another model with the same header."""
    models = [doubt(role, candidate.paths[0].relative_to(folder)) for candidate in fitting]
    certain = [candidate for candidate, model in zip(fitting, models, strict=True) if model is None]
    # Fine-tunes of the transformer work with the adapter; in the other roles, another model does not.
    if fitting and not certain and role != "transformer":
        raise CheckpointError(
            f"the only file that could be the {role.replace('_', ' ')} is, by its path, {models[0]}",
            received=str(fitting[0].paths[0]),
            allowed=WANTED[role],
            remedy=f"Set `{role}` to use this file nevertheless.",
        )
    return certain or fitting


def _for_speakers(
    fitting: list[Candidate], speakers: int, transformer: tuple[Path, ...], folder: Path
) -> list[Candidate]:
    """The adapters that go with a transformer and are not for another number of speakers."""
    merged = [candidate for candidate in fitting if candidate.paths == transformer]
    plain = [candidate for candidate in fitting if "transformer" not in candidate.roles]
    if merged:
        return merged
    other = SPEAKERS[3 - speakers]
    fitting = [candidate for candidate in plain if not _hints(other, candidate, folder)]
    if plain and not fitting:
        raise CheckpointError(
            f"no InfiniteTalk weights for {speakers} speaker(s)",
            received=", ".join(str(candidate.paths[0]) for candidate in plain),
            remedy="Set `adapter` to use one of these files nevertheless.",
        )
    own = [candidate for candidate in fitting if _hints(SPEAKERS[speakers], candidate, folder)]
    return own or fitting


def _hints(pattern: re.Pattern[str], candidate: Candidate, folder: Path) -> bool:
    path = candidate.paths[0]
    return bool(pattern.search(str(path.relative_to(folder))))


def _none(role: str, folder: Path, found: Sequence[Candidate]) -> CheckpointError:
    unusable = [f"{each.paths[0].name}: {each.problem.problem}" for each in found if each.problem]
    return CheckpointError(
        f"no weight file for the {role.replace('_', ' ')} in this folder",
        received=f"{folder} with {len(found)} weight files, which `python -m talkinghead_lab inventory "
        f"{folder}` lists" + "".join(f"; {text}" for text in unusable[:4]),
        remedy=f"Put the file there, or name it in `{role}`; `python -m talkinghead_lab fetch FOLDER` "
        "downloads complete sets.",
    )


def _several(role: str, folder: Path, fitting: Sequence[Candidate]) -> CheckpointError:
    return CheckpointError(
        f"{len(fitting)} weight files could be the {role.replace('_', ' ')}",
        received=", ".join(str(candidate.paths[0].relative_to(folder)) for candidate in fitting),
        remedy=f"Set `{role}` to one of them.",
    )


def tokenizer_of(
    files: Roles,
    problems: Mapping[str, CheckpointError],
    folder: Path | None = None,
) -> Path:
    """Where the tokenizer of the text encoder is: umT5's in the package, any other's in a folder or below.

    Args:
        files: by role.
        problems: why the other roles have no file.
        folder: unset: that of the text encoder.

    Raises:
        CheckpointError: there is no text encoder, or no tokenizer or several could be its.
    """
    if "text_encoder" in problems:
        raise problems["text_encoder"]
    if network_content(*files["text_encoder"]).rows.get("text_encoder") == UMT5_VOCABULARY:
        return UMT5_TOKENIZER
    text_encoder = files["text_encoder"][0]
    folder = folder or text_encoder.parent
    found = [path for path in sorted(_files(folder, {".json"})) if path.name == "tokenizer.json"]
    distinct = {path.read_bytes(): path for path in reversed(found)}
    if len(distinct) != 1:
        raise CheckpointError(
            f"{len(distinct) or 'no'} tokenizers could be the text encoder's",
            received=f"{', '.join(map(str, distinct.values())) or folder} for {text_encoder}",
            remedy="Keep the tokenizer.json that belongs to it in this folder, and no other.",
        )
    return next(iter(distinct.values())).parent
