"""Inventory: which weight files there are, what is missing, and whether a generation can run with them."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.devices import GIB, available_bytes, compute_type, pick_device
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import Plan, plan
from talkinghead_lab.weights.layer_checks import PLAIN
from talkinghead_lab.weights.listing import COMPLETE, FileRow, Machine, RoleRow, listing, with_remedy
from talkinghead_lab.weights.locating import places
from talkinghead_lab.weights.quantization import allows_fp8_matmuls
from talkinghead_lab.weights.search import Progress

WIDTH, FILE_COLUMN, ROLE_COLUMN = 100, 21, 27


@dataclass(frozen=True)
class Inventory:
    """The weight files of a checkpoint on this machine.

    Args:
        folders: that were looked at, by the fields of a request that name them.
        device: that would run the networks.
        compute: type that the transformer would compute in.
        files: all weight files.
        roles: what a generation needs.
        plan: the memory that it needs; None if a role is not complete.
        problem: why a generation cannot run although all roles are complete.
    """

    folders: Mapping[str, str]
    device: str
    compute: str
    files: tuple[FileRow, ...]
    roles: tuple[RoleRow, ...]
    plan: Plan | None
    problem: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether a generation can run with these files, given enough memory."""
        return self.plan is not None

    @property
    def verdict(self) -> str:
        """Whether a generation can run with these files on this machine, and with how much memory."""
        if self.plan is None:
            lacking = [f"{row.role} is {row.state}" for row in self.roles if row.state != COMPLETE]
            return f"A generation cannot run with these files: {self.problem or ', '.join(lacking) + '.'}"
        size, found = self.plan.settings["frame_size"], self.plan
        resident = (
            f"{found.needed_gib:.2f} GiB of memory on {self.device}, where {found.free_gib:.2f} are free"
        )
        able = "can run" if found.fits is not False else "does not fit"
        text = f"A generation {able} with these files: {size} needs {resident}."
        if torch.device(self.device).type != "cuda":
            return text
        host, free = sum(found.weights_gib.values()), available_bytes(torch.device("cpu")) / GIB
        return (
            f"{text} With a `vram_budget_gib` it needs {found.smallest_budget_gib:.2f} GiB there, and "
            f"{host:.2f} GiB of host memory for the weights, where {free:.2f} are free."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"complete": self.is_complete, "verdict": self.verdict}

    def rows(self) -> list[dict[str, Any]]:
        """A row for every file, and for every role that is not complete: what a table shows."""
        return [
            *(
                {
                    "file or role": row.path,
                    "state": row.state,
                    "role": ", ".join(row.roles),
                    "GiB": row.gib,
                    "stored as": _stored(row),
                    "next": with_remedy(row.reason, row.next),
                }
                for row in self.files
            ),
            *(
                {
                    "file or role": row.role,
                    "state": row.state,
                    "role": row.role,
                    "GiB": None,
                    "stored as": None,
                    "next": with_remedy(row.reason, row.next),
                }
                for row in self.roles
                if row.state != COMPLETE
            ),
        ]

    def __str__(self) -> str:
        return "\n".join(
            [
                *_wrapped(
                    f"{len(self.files)} weight files in {', '.join(self.folders.values()) or 'no folder'}, "
                    f"checked on {self.device} in {self.compute}",
                    0,
                ),
                "",
                *self._table_of_files(),
                *self._table_of_roles(),
                *_wrapped(self.verdict, 0),
            ]
        )

    def _table_of_files(self) -> Iterator[str]:
        if self.files:
            yield f"{'state':<10} {'GiB':>8}  file"
        for row in self.files:
            shards = f" and {row.shards - 1} more" if row.shards > 1 else ""
            first, *others = _wrapped(row.path + shards, FILE_COLUMN) or [""]
            yield f"{row.state:<10} {row.gib:>8.3f}  {first}"
            details = [*others]
            if row.roles:
                details += _wrapped(f"{', '.join(row.roles)}: {_stored(row)}; {row.layout}", FILE_COLUMN)
            details += _wrapped(with_remedy(row.reason, row.next), FILE_COLUMN)
            yield from (" " * FILE_COLUMN + line for line in details)
        if self.files:
            yield ""

    def _table_of_roles(self) -> Iterator[str]:
        lacking = [row for row in self.roles if row.state != COMPLETE]
        if lacking:
            yield f"{'needed':<15} {'state':<10} what to do"
        explained: dict[str, str] = {}
        for row in lacking:
            text = with_remedy(row.reason, row.next)
            other = explained.setdefault(text, row.role)
            text = f"as for {other}" if text and other != row.role else text
            first, *others = _wrapped(text, ROLE_COLUMN) or [""]
            yield f"{row.role:<15} {row.state:<10} {first}".rstrip()
            yield from (" " * ROLE_COLUMN + line for line in others)
        if lacking:
            yield ""


def inventory(request: GenerationParams, progress: Progress = iter) -> Inventory:
    """Take the inventory of the checkpoint of a request, on the device of the request.

    Args:
        request: with weights, speakers, precision and device; its media decide the expected memory.
        progress: shows how many files are done.

    Raises:
        CheckpointError: `weights` is no folder.
        InvalidRequest: there is no such device.
    """
    device = pick_device(request.device)
    compute = compute_type(request.precision, device)
    machine = Machine(device, compute, allows_fp8_matmuls(request.precision, device))
    files, roles = listing(request.checkpoint, request.speakers, request.weight_sources, machine, progress)
    planned, problem = None, ""
    if all(row.state == COMPLETE for row in roles):
        try:
            planned = plan(request)
        except TalkingHeadError as error:
            problem = str(error)
    folders = places(request.checkpoint, request.weight_sources)
    return Inventory(
        folders={name: str(path) for name, path in folders.items()},
        device=str(device),
        compute=PLAIN[compute],
        files=tuple(files),
        roles=tuple(roles),
        plan=planned,
        problem=problem,
    )


def printable(text: str) -> str:
    """A path with characters that a terminal or a codec does not take replaced."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH - indent, break_on_hyphens=False)


def _stored(row: FileRow) -> str:
    return ", ".join(f"{count} {kind}s" for kind, count in sorted(row.stored.items()))
