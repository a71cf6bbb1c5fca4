"""What a loaded transformer leaves behind, and what is imported while it is read."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from talkinghead_lab.training.networks import build_untrained, write_checkpoint
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.transformer import importing, load_transformer

CPU = torch.device("cpu")


def test_an_offloaded_transformer_lets_go_of_its_files(request_for, tmp_path):
    """Stored in the type that it computes in, so that nothing is copied for another reason."""
    write_checkpoint(tmp_path, build_untrained(0), torch.float32)
    folders = {name: str(tmp_path / name) for name in checkpoints.RELEASED_REPOSITORIES}
    params = request_for(device="cpu", precision="fp32", **folders)
    files = checkpoints.locate(params)
    resident = load_transformer(params, files, CPU, offloaded=False)
    assert str(tmp_path) in mapped_files()
    expected = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    del resident
    dit = load_transformer(params, files, CPU, offloaded=True)
    gc.collect()
    assert str(tmp_path) not in mapped_files()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in dit.state_dict().items())


def mapped_files() -> str:
    """All files that are mapped into this process."""
    return Path("/proc/self/maps").read_text()


def test_settings_are_as_they_were_once_weights_are_read():
    def settings() -> tuple[bool, float, int]:
        return gc.isenabled(), sys.getswitchinterval(), torch.get_num_threads()

    def fail_while_importing() -> None:
        with importing():
            assert not gc.isenabled()
            assert sys.getswitchinterval() < usual[1]
            raise KeyError

    usual = settings()
    with pytest.raises(KeyError):
        fail_while_importing()
    assert settings() == usual


def test_what_takes_longest_to_import_waits_until_weights_are_read():
    told = "import sys, talkinghead_lab.pipeline; print(sys.modules.keys() & {'transformers', 'scipy'})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
