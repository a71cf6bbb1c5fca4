"""Download a variant of the weights, continue it, and check every file."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from talkinghead_lab.errors import DownloadError, NoSpaceLeft
from talkinghead_lab.foundation.digests import remember_sha256, sha256_of_file
from talkinghead_lab.foundation.files import atomic_path, locked, output_errors
from talkinghead_lab.foundation.schema import versioned
from talkinghead_lab.weights.download.hub import RemoteFile, commit_of, download, files_of
from talkinghead_lab.weights.download.transfers import Progress, transfer
from talkinghead_lab.weights.download.variants import PINS, VARIANTS

RECORD = "fetched.json"
ATTEMPTS_PER_FILE = 2  # one that arrives damaged is downloaded once more
GB = 1e9
Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a download would do.

    Args:
        variant: key of `VARIANTS`.
        folder: that the files are put into.
        files: all files of the variant.
        missing: those that are absent or damaged.
        arrived: bytes of the missing files that an earlier call has left.
        free: bytes on the disk, with those that damaged files will free.
    """

    variant: str
    folder: Path
    files: Sequence[RemoteFile]
    missing: Sequence[RemoteFile]
    arrived: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.missing) - self.arrived

    def __str__(self) -> str:
        lines = [f"{file.size / GB:8.2f} GB  {file.place}" for file in self.missing]
        present = len(self.files) - len(self.missing)
        lines.append(
            f"{self.variant}: {len(self.missing)} files to download into {self.folder}, {present} are there. "
            f"{self.needed / GB:.2f} GB to go, {self.free / GB:.2f} GB free."
        )
        return "\n".join(lines)


def fetch(folder: Path, variant: str, confirm: Callable[[Plan], bool], report: Report) -> bool:
    """Make a folder hold all files of a variant, each with the digest that the hub states.

    Files that are there are checked. What an earlier call has left of a file is continued. `fetched.json`
    in the folder records the commits.

    Args:
        folder: target; made if it does not exist.
        variant: key of `VARIANTS`.
        confirm: asked before anything is downloaded; not if nothing is missing.
        report: takes a line for each thing that the user should see.

    Returns:
        Whether the files are there; False if `confirm` said no.

    Raises:
        DownloadError: the hub cannot be reached, lacks a file, asks for access, or sends other bytes.
        NoSpaceLeft: the missing files do not fit the disk.
        FolderLocked: another call downloads into the folder.
        OutputError: the folder cannot be written.
    """
    with output_errors("the folder cannot be made", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        record = _read_record(folder)
        parts = VARIANTS[variant]
        repositories = dict.fromkeys(part.repository for part in parts)
        commits = {name: _chosen_commit(name, record.get(name), report) for name in repositories}
        files = [file for part in parts for file in files_of(part, commits[part.repository])]
        plan = _planned(variant, folder, files, report)
        if plan.missing:
            _check_space(plan)
            if not confirm(plan):
                return False
        _write_record(folder, record | commits)
        progress = Progress(plan.needed + plan.arrived, plan.arrived)
        transfer(plan.missing, lambda file: _download_checked(file, folder, progress, report), progress)
        report(f"All {len(files)} files of {variant} are in {folder}, and intact.")
    return True


def _chosen_commit(repository: str, recorded: str | None, report: Report) -> str:
    """The pinned commit; if the hub has lost it, that of the earlier download, then the branch's own."""
    pin = PINS[repository]
    for revision in (pin.commit, recorded, pin.branch):
        commit = commit_of(repository, revision) if revision else None
        if commit:
            break
    else:
        raise DownloadError(
            "the repository has none of the revisions",
            received=repository,
            allowed=f"{pin.commit} or {pin.branch}",
        )
    if commit != pin.commit:
        report(f"{repository}: the hub no longer has commit {pin.commit}; {commit} is taken.")
    if recorded not in (None, commit):
        report(f"{repository}: the folder has files of commit {recorded}; they become those of {commit}.")
    return commit


def _planned(variant: str, folder: Path, files: Sequence[RemoteFile], report: Report) -> Plan:
    present = [file for file in files if (folder / file.place).is_file()]
    damaged = _damaged(folder, present)
    for file in damaged:
        report(f"{file.place} is damaged, incomplete or of another commit; it is downloaded again.")
    intact = {file.place for file in present} - {file.place for file in damaged}
    missing = [file for file in files if file.place not in intact]
    parts = [(_part(folder / file.place, file), file.size) for file in missing]
    arrived = sum(min(part.stat().st_size, size) for part, size in parts if part.is_file())
    freed = sum((folder / file.place).stat().st_size for file in damaged)
    return Plan(variant, folder, files, missing, arrived, shutil.disk_usage(folder).free + freed)


def _damaged(folder: Path, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Those of the files that do not have the bytes that the hub states."""
    damaged = []
    size = sum(file.size for file in files)
    with tqdm(total=size, unit="B", unit_scale=True, desc="checking", disable=None, leave=False) as bar:
        for file in files:
            if not file.is_intact(folder / file.place):
                damaged.append(file)
            bar.update(file.size)
    return damaged


def _check_space(plan: Plan) -> None:
    if plan.needed > plan.free:
        raise NoSpaceLeft(
            "the weights do not fit the disk",
            received=f"{plan.free / GB:.2f} GB free for {plan.folder}",
            allowed=f"{plan.needed / GB:.2f} GB or more",
            remedy="Free space, or choose a folder on another disk.",
        )


def _download_checked(file: RemoteFile, folder: Path, progress: Progress, report: Report) -> None:
    path = folder / file.place
    part = _part(path, file)
    with output_errors("the file cannot be written", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        for _ in range(ATTEMPTS_PER_FILE):
            download(file, part, progress.file_bar())
            if file.is_intact(part, sha256_of_file):
                part.replace(path)
                if file.sha256:
                    remember_sha256(path, file.sha256)
                report(f"{file.place} is complete.")
                return
            part.unlink()
            progress.add(-file.size)
            report(f"{file.place} arrived damaged.")
    raise DownloadError(
        f"the file arrived damaged {ATTEMPTS_PER_FILE} times",
        received=file.place,
        allowed=f"the digest {file.digest}",
        remedy="Check the network and its proxy, then run the same command.",
    )


def _part(path: Path, file: RemoteFile) -> Path:
    """What has arrived of a file; the digest keeps the bytes of another commit from being continued."""
    return path.with_name(f"{path.name}.{file.digest[:12]}.part")


def _read_record(folder: Path) -> dict[str, str]:
    """The commits of earlier downloads by repository; none if the record is missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        commits = json.loads((folder / RECORD).read_text(encoding="utf-8"))["commits"]
        return {str(name): str(commit) for name, commit in commits.items()}
    return {}


def _write_record(folder: Path, commits: dict[str, str]) -> None:
    with atomic_path(folder / RECORD, overwrite=True) as temporary:
        temporary.write_text(json.dumps(versioned({"commits": commits}), indent=2) + "\n", encoding="utf-8")
