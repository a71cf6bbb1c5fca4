"""Devices are named so that every part of PyTorch takes them."""

import pytest
import torch

from talkinghead_lab.devices import pick_device
from talkinghead_lab.errors import InvalidRequest


def test_a_gpu_always_has_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {"auto": "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1", "cpu": "cpu"}
    assert {name: str(pick_device(name)) for name in names} == names
    with pytest.raises(InvalidRequest, match="2 GPUs are visible"):
        pick_device("cuda:2")
