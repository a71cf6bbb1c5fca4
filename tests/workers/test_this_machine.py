"""Worker processes of this machine: the GPU of each, and the errors that they send."""

import pickle

import pytest
import torch

from talkinghead_lab.errors import FolderLocked, InvalidRequest, NoSpaceLeft
from talkinghead_lab.workers.this_machine import visible_device


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("4,6", ["4", "6", "4"]), (None, ["0", "1", "0"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a"])],
)
def test_each_worker_has_a_gpu_of_its_own(monkeypatch, visible, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [visible_device(number) for number in range(3)] == devices


@pytest.mark.parametrize(
    "error",
    [
        NoSpaceLeft("no space left", received="/a", remedy="Free some."),
        FolderLocked("the folder is being written"),
        InvalidRequest("out of range", received=3, allowed="1 or 2", field="speakers"),
    ],
)
def test_errors_arrive_unchanged_from_another_process(error):
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
