import os
import subprocess
import sys

import pytest

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import LOCK, atomic_path, locked


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_a_finished_file_appears_under_its_name_with_usual_rights(tmp_path):
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
def test_any_exception_leaves_nothing_and_keeps_its_kind(tmp_path, exception):
    def fail_while_writing() -> None:
        with atomic_path(tmp_path / "video.mp4") as temporary:
            temporary.write_bytes(b"half")
            raise exception

    with pytest.raises(exception):
        fail_while_writing()
    assert names_in(tmp_path) == []


def test_an_existing_file_is_never_overwritten_unless_told(tmp_path):
    final = tmp_path / "run.json"
    final.write_text("first")
    with pytest.raises(OutputError, match="exists already"), atomic_path(final):
        pytest.fail("the block must not run")
    with atomic_path(final, overwrite=True) as temporary:
        temporary.write_text("second")
    assert final.read_text() == "second"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    final = tmp_path / "run.json"

    def write_meanwhile() -> None:
        with atomic_path(final) as temporary:
            temporary.write_text("mine")
            final.write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        write_meanwhile()
    assert final.read_text() == "theirs"
    assert names_in(tmp_path) == ["run.json"]


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "run.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"), atomic_path(tmp_path / "run.json"):
        pytest.fail("the block must not run")


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(OutputError, match="must exist and be writable") as caught,
        atomic_path(tmp_path / "no" / "x"),
    ):
        pytest.fail("the block must not run")
    assert str(tmp_path / "no") in str(caught.value)


def test_a_name_that_cannot_be_is_refused_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="name too long"), atomic_path(tmp_path / ("я" * 200)):
        pytest.fail("the block must not run")
    with atomic_path(tmp_path / ("я" * 120 + ".json")) as temporary:
        temporary.write_text("{}")
    assert names_in(tmp_path) == ["я" * 120 + ".json"]


FILL = """
import resource, signal, sys
from pathlib import Path
from talkinghead_lab.errors import OutputError
from talkinghead_lab.files import LOCK, atomic_path, locked
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_path(Path(sys.argv[1]) / "big.bin") as temporary:
        temporary.write_bytes(bytes(100_000))
except OutputError as error:
    print(error)
"""


def test_no_space_is_an_output_error_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "no space left while writing" in done.stdout
    assert str(tmp_path) in done.stdout
    assert names_in(tmp_path) == []


HOLD_A_LOCK = """
import sys, time
from pathlib import Path
from talkinghead_lab.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_another_process_writes_is_refused_with_its_number(holder, tmp_path):
    with pytest.raises(OutputError, match=f"by process {holder.pid} on .*{tmp_path}"), locked(tmp_path):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == [LOCK]


def test_the_lock_of_a_killed_process_does_not_count(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert names_in(tmp_path) == [LOCK]
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert names_in(tmp_path) == []


def test_within_a_process_too_only_one_call_writes(tmp_path):
    with locked(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()}"), locked(tmp_path):
        pytest.fail("the block must not run")
    with locked(tmp_path):
        assert names_in(tmp_path) == [LOCK]


COUNT_UNDER_A_LOCK = """
import sys, time
from pathlib import Path
from talkinghead_lab.errors import OutputError
from talkinghead_lab.files import locked
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


def test_processes_that_race_for_a_lock_never_hold_it_together(tmp_path):
    """Each adds 1 fifty times; were two inside at once, one's addition would be lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", COUNT_UNDER_A_LOCK, str(folder), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "150"
