"""A process ends with its parent."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import subprocess, sys, time
child = [sys.executable, "-c", {child!r}]
print(subprocess.Popen(child, stdout=subprocess.PIPE).stdout.readline().decode(), flush=True)
time.sleep(60)
"""
CHILD = """
import os, time
from talkinghead_lab.foundation.parent_process import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_process_ends_with_its_killed_parent():
    command = [sys.executable, "-c", PARENT.format(child=CHILD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        child.wait(10)
    assert not child.is_running()
