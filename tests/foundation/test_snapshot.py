"""Copies of files keep their content, whatever happens to the originals."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from talkinghead_lab.errors import MediaError, MediaTooLarge, OutputError
from talkinghead_lab.foundation import snapshot
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.foundation.snapshot import PREFIX, READ_ONLY, Snapshot, open_beneath


def take(source, path=None) -> Snapshot:
    descriptor = os.open(source, READ_ONLY)
    try:
        return Snapshot.take(descriptor, str(source), path)
    finally:
        os.close(descriptor)


def test_a_copy_outlives_its_original_and_is_removed_when_nothing_refers_to_it(tmp_path):
    source = tmp_path / "a.wav"
    source.write_bytes(os.urandom(3_000_000))
    digest = sha256_of_file(source)
    copies = [take(source, tmp_path / "inputs" / name) for name in ("first.wav", "second.wav")]
    source.write_bytes(b"other")
    assert [copy.sha256 for copy in copies] == [digest] * 2 == [sha256_of_file(copy.path) for copy in copies]
    copies.pop()
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["first.wav"]
    copies.pop()
    assert not (tmp_path / "inputs").exists()


def test_a_copy_in_the_temporary_folder_keeps_the_suffix(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"x")
    copy = take(tmp_path / "a.mp3")
    folder = copy.path.parent
    assert copy.path.suffix == ".mp3"
    del copy
    assert not folder.exists()


def take_and_end(source: Path, folder: Path, die: bool) -> None:
    """Copy into a temporary folder below `folder`; then wait for the end, or be killed."""
    tempfile.tempdir = str(folder)
    copy = take(source)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "ready").touch()
    signal.pause()
    del copy


def test_copies_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path, monkeypatch):
    source, folder = tmp_path / "a.wav", tmp_path / "temporary"
    folder.mkdir()
    source.write_bytes(b"x" * 1000)
    processes = multiprocessing.get_context("fork")
    killed, living = (
        processes.Process(target=take_and_end, args=(source, folder, die)) for die in (True, False)
    )
    killed.start()
    killed.join()
    [abandoned] = folder.iterdir()
    assert (abandoned / "copy.wav").stat().st_size == 1000
    living.start()
    while not (folder / "ready").exists():
        time.sleep(0.01)
    assert not abandoned.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (folder / f"{PREFIX}link").symlink_to(tmp_path)
    (folder / f"{PREFIX}other").mkdir()
    (folder / f"{PREFIX}other" / "inner").mkdir()  # not ours: we make no folders in it
    own = take(source)
    kept = {path.name for path in folder.iterdir()}
    assert len(kept) == 5, "ready, the living process's, ours, a link, and what somebody else made"
    again = take(source)
    assert own.path.exists(), "a process does not take its own for abandoned"
    assert again.path.exists()
    living.kill()
    living.join()
    del own, again
    last = take(source)
    assert {path.name for path in folder.iterdir()} == {
        *("ready", f"{PREFIX}link", f"{PREFIX}other"),
        last.path.parent.name,
    }
    assert source.exists()


def test_a_folder_that_was_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flock, removed = fcntl.flock, []

    def remove_first(descriptor: int, kind: int) -> None:
        if not removed:
            [folder] = tmp_path.glob(f"{PREFIX}*")
            folder.rmdir()
            removed.append(folder)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    source = tmp_path / "a.wav"
    source.write_bytes(b"x")
    copy = take(source)
    assert copy.path.read_bytes() == b"x"
    assert copy.path.parent != removed[0]


def test_errors_name_the_original(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"x")
    copy = take(tmp_path / "a.wav")
    with pytest.raises(MediaError) as caught, copy.named_as_original():
        raise MediaError(f"no sound in {copy.path}", received=f"{copy.path}, 3 s", remedy="Choose another.")
    for text in (str(caught.value), caught.value.problem, caught.value.received):
        assert str(copy.path) not in text
        assert str(tmp_path / "a.wav") in text


def test_what_is_not_a_regular_file_or_too_large_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", "/dev/zero"):
        with pytest.raises(MediaError, match="not a file"):
            take(path)
    with (tmp_path / "sparse.wav").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(MediaTooLarge, match="up to 64 GiB"):
        take(tmp_path / "sparse.wav")


def test_a_file_that_grows_while_it_is_copied_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"x" * 1000)
    plain = snapshot._copy

    def grow(source: int, path, size: int) -> None:
        plain(source, path, size)
        with (tmp_path / "a.wav").open("ab") as file:
            file.write(b"y")

    monkeypatch.setattr(snapshot, "_copy", grow)
    with pytest.raises(MediaError, match="changed while it was copied"):
        take(tmp_path / "a.wav", tmp_path / "inputs" / "a.wav")
    assert not (tmp_path / "inputs").exists()


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"x" * 1000)
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(snapshot, "FICLONE", 0)  # shared blocks would take no space
    with pytest.raises(OutputError, match="no space left") as caught:
        take(tmp_path / "a.wav", tmp_path / "inputs" / "a.wav")
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not (tmp_path / "inputs").exists()


def test_no_link_below_a_folder_is_followed(tmp_path):
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    (shared / "inner").mkdir(parents=True)
    outside.mkdir()
    for folder in (shared / "inner", outside):
        (folder / "a.wav").write_text(folder.name)
    (shared / "link").symlink_to(outside)
    (shared / "inner" / "link.wav").symlink_to(outside / "a.wav")
    relative = (shared / "inner" / "a.wav").relative_to(shared)
    with os.fdopen(open_beneath(shared, relative)) as file:
        assert file.read() == "inner"
    for path in (shared / "link" / "a.wav", shared / "inner" / "link.wav"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            open_beneath(shared, path.relative_to(shared))


def test_opening_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(
        target=lambda: os.close(open_beneath(tmp_path, (tmp_path / "pipe").relative_to(tmp_path)))
    )
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
