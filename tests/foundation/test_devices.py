"""Picking devices and types."""

import pytest
import torch

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.devices import decode_type, pick_device


def test_a_gpu_always_has_an_index(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {"auto": "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1", "cpu": "cpu"}
    assert {name: str(pick_device(name)) for name in names} == names
    with pytest.raises(InvalidRequest, match="2 GPUs are visible"):
        pick_device("cuda:2")


def test_a_gpu_decodes_in_fp16_unless_it_computes_in_fp32():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert decode_type(torch.bfloat16, gpu) == torch.float16
    assert {decode_type(torch.float32, gpu), decode_type(torch.bfloat16, cpu)} == {torch.float32}
