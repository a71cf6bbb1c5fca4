"""A crash, a hang or too much memory in a process of its own is an error here, and results arrive whole."""

import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import psutil
import pytest

from talkinghead_lab.errors import MediaError, MediaTooLarge
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.audio import read_recording
from talkinghead_lab.media.isolated import IsolatedCall
from talkinghead_lab.media.reference import open_reference

CALL = IsolatedCall(seconds=60, mib=256)


def test_results_equal_those_of_this_process():
    path = local_file("sample:recording")
    here, there = read_recording(path), CALL(read_recording, path)
    assert np.array_equal(here.speech, there.speech)
    assert np.array_equal(here.soundtrack, there.soundtrack)
    assert there.soundtrack.flags.writeable
    portrait = local_file("sample:portrait")
    expected, got = open_reference(portrait).frame_at(0), CALL(open_reference, portrait).frame_at(0)
    assert np.array_equal(np.array(expected), np.array(got))


def longest_pause(stop: threading.Event) -> float:
    """Seconds that this thread once had to wait for the interpreter."""
    longest, last = 0.0, time.perf_counter()
    while not stop.wait(0.001):
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    return longest


def test_a_large_result_does_not_hold_up_other_threads():
    size, pauses, waits = 600 * 2**20, [], []
    call = IsolatedCall(seconds=60, mib=1024)
    for _ in range(3):
        started = time.perf_counter()
        bytearray(size)  # no other thread runs meanwhile
        waits.append(time.perf_counter() - started)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as other:
            pause = other.submit(longest_pause, stop)
            assert call(np.zeros, size, np.uint8).size == size
            stop.set()
            pauses.append(pause.result())
    assert min(pauses) < min(waits) / 2


def test_own_errors_come_back_as_they_are():
    path = local_file("sample:recording")
    with pytest.raises(MediaTooLarge) as caught:
        CALL(read_recording, path, max_seconds=2)
    assert (caught.value.problem, caught.value.allowed) == ("the recording is too long", "up to 2 s")
    with pytest.raises(MediaTooLarge) as again:
        read_recording(path, max_seconds=2)
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (signal.raise_signal, signal.SIGSEGV, "crashed .SIGSEGV."),
        (os._exit, 3, "crashed .exit status 3."),
        (sys.exit, 0, "crashed"),
        (bytearray, 10**9, "too much memory"),
        (int, "x", "ValueError"),
    ],
)
def test_what_goes_wrong_there_is_a_media_error(function, argument, message):
    with pytest.raises(MediaError, match=message):
        CALL(function, argument)


def test_a_hang_ends_at_the_time_limit():
    started = time.monotonic()
    with pytest.raises(MediaError, match="takes too long"):
        IsolatedCall(seconds=0.5, mib=256)(time.sleep, 60)
    assert time.monotonic() - started < 10


def test_no_files_can_be_written_and_processor_time_is_limited(tmp_path):
    assert CALL(resource.getrlimit, resource.RLIMIT_FSIZE) == (0, 0)
    seconds, _ = CALL(resource.getrlimit, resource.RLIMIT_CPU)
    assert 60 <= seconds <= 241
    with pytest.raises(MediaError, match="OSError"):
        CALL((tmp_path / "a").write_bytes, b"x")


def test_no_processes_remain(tmp_path):
    for _ in range(3):
        number = CALL(os.getpid)
        assert number != os.getpid()
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.filterwarnings("ignore:resource_tracker")
def test_a_call_follows_the_death_of_the_process_that_others_are_forked_from():
    call = IsolatedCall(60, 500)
    for _ in range(5):
        call(bool)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # another one ended with it
                if "multiprocessing" in " ".join(process.cmdline()):
                    process.kill()
        assert call(int, "5") == 5
