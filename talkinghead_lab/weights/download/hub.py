"""List the files of a revision on the Hugging Face hub, and download them so that they can be continued."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from talkinghead_lab.errors import DownloadError
from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.weights.download.variants import Part

# A call that does not answer within this is no network; huggingface_hub waits as long for a file's metadata.
SECONDS_TO_ANSWER = 10
# Attempts in a row that bring no byte. `huggingface_hub.file_download.http_get` makes as many itself, but
# none after a reset connection.
ATTEMPTS = 5
SECONDS_BETWEEN_ATTEMPTS = 1.0  # after the first that brings nothing; each further pause is longer by as much


@dataclass(frozen=True)
class RemoteFile:
    """A file of one commit, as the hub describes it.

    Args:
        repository: as OWNER/NAME.
        commit: of the repository.
        name: path in the repository.
        size: in bytes.
        sha256: of a large file; None for one that git itself stores.
        blob: git's object id.
    """

    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None
    blob: str

    @property
    def place(self) -> str:
        """Path below the folder of the weights."""
        return f"{self.repository.rpartition('/')[2]}/{self.name}"

    @property
    def digest(self) -> str:
        """What its bytes are known by."""
        return self.sha256 or self.blob

    def is_intact(self, path: Path, sha256_of: Callable[[Path], str] = known_sha256) -> bool:
        """Whether a file has the right bytes."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of(path) == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob


def commit_of(repository: str, revision: str) -> str | None:
    """The commit of a branch, or of itself; None if the repository has no such revision.

    Raises:
        DownloadError: the hub or the repository cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    with hub_errors(repository):
        try:
            return HfApi().model_info(repository, revision=revision, timeout=SECONDS_TO_ANSWER).sha
        except RevisionNotFoundError:
            return None


def files_of(part: Part, commit: str) -> list[RemoteFile]:
    """The files of a part, as they are at a commit.

    Raises:
        DownloadError: a pattern matches no file, a name leads out of the folder, or see `commit_of`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(part.repository):
        entries = list(HfApi().list_repo_tree(part.repository, recursive=True, revision=commit))
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    matching = {pattern: [name for name in files if fnmatchcase(name, pattern)] for pattern in part.patterns}
    for pattern, names in matching.items():
        if not names:
            raise DownloadError(
                f"the repository has no file {pattern}",
                received=f"{part.repository} at commit {commit}",
                remedy="Update talkinghead_lab, or download another variant.",
            )
    chosen = sorted({name for names in matching.values() for name in names})
    for name in chosen:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DownloadError("a name leads out of the folder", received=f"{part.repository}: {name}")
    return [
        RemoteFile(
            part.repository,
            commit,
            name,
            files[name].size,
            lfs.sha256 if (lfs := files[name].lfs) else None,
            files[name].blob_id,
        )
        for name in chosen
    ]


def download(file: RemoteFile, path: Path, bar: type[Any]) -> None:
    """Download a file, or what `path` lacks of it. A connection that breaks is opened again.

    What has arrived stays in `path`, whatever ends the call.

    Args:
        file: what to download.
        path: where to put it.
        bar: class of a progress bar, as huggingface_hub makes one for each attempt.

    Raises:
        DownloadError: the hub cannot be reached, has no such file, or asks for access.
        OSError: the file cannot be written.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if path.exists() and path.stat().st_size > file.size:
        path.unlink()
    url = hf_hub_url(file.repository, file.name, revision=file.commit)
    failures = 0
    with hub_errors(file.repository, file.name), path.open("ab") as stream:
        while stream.tell() < file.size:
            start = stream.tell()
            try:
                http_get(
                    url,
                    stream,
                    resume_size=start,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=PurePosixPath(file.name).name,
                    tqdm_class=bar,
                )
            except Exception as error:
                failures = failures + 1 if stream.tell() == start else 0
                if not _may_pass(error) or failures == ATTEMPTS:
                    raise
                time.sleep(SECONDS_BETWEEN_ATTEMPTS * failures)


def _may_pass(error: Exception) -> bool:
    """Whether an error is of the connection or a busy hub, so that another attempt may succeed."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    # huggingface_hub raises OSError without a number when the body ends early.
    return _is_of_the_network(error) or (isinstance(error, OSError) and error.errno is None)


def _is_of_the_network(error: Exception) -> bool:
    # Its versions use httpx or httpx2, and neither is a dependency of ours.
    return type(error).__module__.startswith("httpx")


@contextmanager
def hub_errors(repository: str, name: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub in the block into `DownloadError`, which names what was asked for."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    subject = f"{repository}: {name}" if name else repository
    log_in = "log in with `hf auth login`, or set HF_TOKEN."
    try:
        yield
    except GatedRepoError as error:
        remedy = f"Accept its conditions on {constants.ENDPOINT}/{repository}, then {log_in}"
        raise DownloadError("the repository is gated", received=subject, remedy=remedy) from error
    except RepositoryNotFoundError as error:
        remedy = f"If it is private, {log_in}"
        raise DownloadError("the hub shows no such repository", received=subject, remedy=remedy) from error
    except EntryNotFoundError as error:
        raise DownloadError("the hub has no such file", received=subject) from error
    except OfflineModeIsEnabled as error:
        remedy = "Unset HF_HUB_OFFLINE to download."
        raise DownloadError("the hub is switched off", received="HF_HUB_OFFLINE", remedy=remedy) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = f"Try again later, or {log_in}"
        raise DownloadError(f"the hub answers {status}", received=subject, remedy=remedy) from error
    except Exception as error:
        if not _may_pass(error):
            raise
        raise DownloadError(
            f"the hub cannot be reached ({type(error).__name__}: {error})",
            received=f"{subject} from {constants.ENDPOINT}",
            remedy="Check the network and its proxy. The same command continues what has been downloaded.",
        ) from error
