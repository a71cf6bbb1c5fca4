"""What is decided from a request before anything is loaded."""

import pytest
import torch

from talkinghead_lab.pipeline import request as requests


@pytest.mark.parametrize("second", [None, "sample:recording-2"])
@pytest.mark.parametrize("width", [1, 10**6])
def test_a_wide_transformer_is_compiled_on_a_gpu_for_any_number_of_speakers(
    request_for, monkeypatch, width, second
):
    monkeypatch.setattr(requests, "NARROWEST_COMPILED", width)
    request = request_for(second_audio_path=second)
    files = requests.checkpoint_files(request)
    assert requests._is_compiled(request, files, torch.device("cuda")) is (width == 1)
    assert not requests._is_compiled(request, files, torch.device("cpu"))
    chosen = request.replace(compile_blocks=width > 1)
    assert requests._is_compiled(chosen, files, torch.device("cpu")) is (width > 1)
