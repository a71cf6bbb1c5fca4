"""Find the shards of a network: by an index beside them, or by their names."""

import re
from collections.abc import Sequence
from pathlib import Path

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.formats.json_files import read_json

# What the names of indexes end with, such as `diffusion_pytorch_model.safetensors.index.json`.
INDEX = ".index.json"
NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


def with_shards(path: Path) -> tuple[Path, ...]:
    """A file, or all shards that belong to it; of an index, the shards that it names.

    An index counts more than names: LightX2V also writes one file for each block.

    Raises:
        CheckpointError: the index cannot be read, or names no files of its folder.
    """
    if path.name.endswith(INDEX):
        return tuple(shards_of(path))
    for index in sorted(path.parent.glob(f"*{INDEX}")):
        try:
            shards = shards_of(index)
        except CheckpointError:
            if path.name.startswith(index.name.removesuffix(INDEX).rpartition(".")[0]):
                raise
            continue  # it is about other files
        if path in shards:
            return tuple(shards)
    match = NUMBERED.fullmatch(path.name)
    if match is None:
        return (path,)
    numbers = range(1, int(match["total"]) + 1)
    names = [f"{match['stem']}-{n:05}-of-{match['total']}{match['suffix']}" for n in numbers]
    return tuple(path.with_name(name) for name in names)


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, sorted; whether they exist is not looked at.

    Raises:
        CheckpointError: it cannot be read, or names no files of its folder.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError("the index of the shards has no `weight_map`", received=str(index))
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
            raise CheckpointError(
                f"the index {index} names no file of its folder",
                received=repr(name)[:80],
                allowed="names of files beside it",
            )
    return sorted({index.with_name(name) for name in names.values()})


def check_all_there(shards: Sequence[Path]) -> None:
    """Refuse a set of shards of which some are missing.

    Raises:
        CheckpointError: it names the first of them.
    """
    missing = [path for path in shards if not path.is_file()]
    if missing and len(shards) > 1:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards missing: {missing[0].name}"
            + (" and others" if missing[1:] else ""),
            received=str(missing[0].parent),
            remedy="Download them to this folder, or delete the others.",
        )
