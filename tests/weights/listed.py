"""List weight files for the CPU."""

from pathlib import Path

import torch

from talkinghead_lab.weights.listing import FileRow, Machine, RoleRow, listing

CPU = Machine(torch.device("cpu"), torch.float32, fp8_matmuls=False)


def listed(speakers: int, **sources: str | Path) -> tuple[dict[str, FileRow], dict[str, RoleRow]]:
    """The files by path and the roles by name, of folders and files by the fields that name them."""
    files, roles = listing("released", speakers, {name: str(path) for name, path in sources.items()}, CPU)
    assert len({row.path for row in files}) == len(files)
    return {row.path: row for row in files}, {row.role: row for row in roles}
