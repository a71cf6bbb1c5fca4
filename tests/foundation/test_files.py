"""Atomic files appear only when complete; a locked folder has one writer."""

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import LOCK, NO_LOCKS, atomic_path, locked


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_a_complete_file_appears_under_its_name_with_default_permissions(tmp_path):
    final = tmp_path / "record.json"
    with atomic_path(final) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        temporary.write_text("{}")
        assert not final.exists()
    assert final.read_text() == "{}"
    assert names_in(tmp_path) == ["record.json"]
    (tmp_path / "plain").write_text("")
    assert final.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError, FileNotFoundError])
def test_any_exception_keeps_its_type_and_leaves_no_file(tmp_path, exception):
    def write():
        with atomic_path(tmp_path / "video.mp4") as temporary:
            temporary.write_bytes(b"half")
            raise exception

    with pytest.raises(exception):
        write()
    assert names_in(tmp_path) == []


def test_an_existing_file_is_overwritten_only_on_request(tmp_path):
    final = tmp_path / "run.json"
    final.write_text("first")
    with pytest.raises(OutputError, match="already exists"), atomic_path(final):
        pytest.fail("the block must not run")
    with atomic_path(final, overwrite=True) as temporary:
        temporary.write_text("second")
    assert final.read_text() == "second"


def test_a_file_that_appears_during_the_block_is_not_overwritten(tmp_path):
    final = tmp_path / "run.json"

    def write():
        with atomic_path(final) as temporary:
            temporary.write_text("mine")
            final.write_text("theirs")

    with pytest.raises(OutputError, match="already exists"):
        write()
    assert final.read_text() == "theirs"
    assert names_in(tmp_path) == ["run.json"]


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "run.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="already exists"), atomic_path(tmp_path / "run.json"):
        pytest.fail("the block must not run")


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(OutputError, match="must exist and be writable") as caught,
        atomic_path(tmp_path / "no" / "x"),
    ):
        pytest.fail("the block must not run")
    assert str(tmp_path / "no") in str(caught.value)


def test_an_impossible_name_is_refused_before_the_block_runs(tmp_path):
    with pytest.raises(OutputError, match="name too long"), atomic_path(tmp_path / ("я" * 200)):
        pytest.fail("the block must not run")
    with atomic_path(tmp_path / ("я" * 120 + ".json")) as temporary:
        temporary.write_text("{}")
    assert names_in(tmp_path) == ["я" * 120 + ".json"]


FILL = """
import resource, signal, sys
from pathlib import Path
from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import LOCK, atomic_path, locked
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_path(Path(sys.argv[1]) / "big.bin") as temporary:
        temporary.write_bytes(bytes(100_000))
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_an_output_error_and_leaves_no_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "no space left while writing" in done.stdout
    assert str(tmp_path) in done.stdout
    assert names_in(tmp_path) == []


HOLD_A_LOCK = """
import sys, time
from pathlib import Path
from talkinghead_lab.foundation.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_error_names_the_process_that_holds_the_lock(holder, tmp_path):
    with pytest.raises(OutputError, match=f"by process {holder.pid} on .*{tmp_path}"), locked(tmp_path):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == [LOCK]


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert names_in(tmp_path) == [LOCK]
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert names_in(tmp_path) == []


def test_two_calls_in_one_process_exclude_each_other(tmp_path):
    with locked(tmp_path):
        with pytest.raises(OutputError, match=f"process {os.getpid()}"), locked(tmp_path):
            pytest.fail("the block must not run")
        with ThreadPoolExecutor(1) as thread:
            refused = thread.submit(locked(tmp_path).__enter__).exception()
        assert isinstance(refused, OutputError)
    with locked(tmp_path):
        assert names_in(tmp_path) == [LOCK]


def test_another_thread_may_release_the_lock(tmp_path):
    lock = locked(tmp_path)
    lock.__enter__()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lock.__exit__, None, None, None).result()
    with locked(tmp_path):
        assert names_in(tmp_path) == [LOCK]


@pytest.mark.parametrize("error", NO_LOCKS)
def test_a_file_system_without_locks_gives_no_protection_and_no_error(tmp_path, monkeypatch, error):
    def flock(descriptor, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path), locked(tmp_path):
        assert names_in(tmp_path) == [LOCK]
    assert names_in(tmp_path) == []


def test_locking_makes_no_folder(tmp_path):
    with pytest.raises(OutputError, match="must exist and be writable"), locked(tmp_path / "no"):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == []


COUNT_UNDER_A_LOCK = """
import sys, time
from pathlib import Path
from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import locked
folder, counter, left = Path(sys.argv[1]), Path(sys.argv[2]), 50
while left:
    try:
        with locked(folder):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))
            left -= 1
    except OutputError:
        pass
"""


def test_racing_processes_never_hold_the_lock_together(tmp_path):
    """Each process adds 1 fifty times; if two held the lock at once, an addition would be lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", COUNT_UNDER_A_LOCK, str(folder), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "150"
