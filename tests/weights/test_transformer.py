"""Loading the transformer: memory it holds, settings it restores, and imports in the background."""

import gc
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.training.networks import build_untrained, vocabulary
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.transformer import SWITCH_INTERVAL, importing, load_transformer
from talkinghead_lab.weights.writing import write_checkpoint

CPU = torch.device("cpu")


def test_an_offloaded_transformer_keeps_no_file_mapped(request_for, tmp_path):
    """The stored type is the compute type, so that no tensor is copied only for its conversion."""
    write_checkpoint(tmp_path, build_untrained(0), vocabulary(), torch.float32)
    folders = {name: str(tmp_path / name) for name in locating.RELEASED_REPOSITORIES}
    params = request_for(device="cpu", precision="fp32", **folders)
    settings = load_settings(params)
    resident = load_transformer(settings)
    assert str(tmp_path) in mapped_files()
    expected = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    del resident
    dit = load_transformer(replace(settings, offloaded=True))
    gc.collect()
    assert str(tmp_path) not in mapped_files()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in dit.state_dict().items())


def mapped_files() -> str:
    """The memory map of this process."""
    return Path("/proc/self/maps").read_text()


@pytest.fixture
def eight_threads():
    """PyTorch uses eight threads, in new Python threads too."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def settings() -> tuple[bool, float, int]:
    return gc.isenabled(), sys.getswitchinterval(), torch.get_num_threads()


def test_an_error_while_loading_restores_the_settings_of_the_process(eight_threads):
    usual, loading = settings(), []

    def fail():
        with importing():
            loading.append(settings())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert loading == [(False, pytest.approx(SWITCH_INTERVAL), 2)]
    assert settings() == usual


@pytest.mark.parametrize("first_to_finish", [0, 1])
def test_loads_in_two_threads_share_the_settings_and_the_last_restores_them(eight_threads, first_to_finish):
    usual, loading = settings(), (False, pytest.approx(SWITCH_INTERVAL), 2)
    finish = [threading.Event(), threading.Event()]
    started = queue.SimpleQueue()

    def load(finish):
        with importing():
            started.put(settings())
            finish.wait()
        return settings()

    with ThreadPoolExecutor(2) as threads:
        loads = []
        for number in range(2):
            loads.append(threads.submit(load, finish[number]))
            assert started.get() == loading
        finish[first_to_finish].set()
        loads[first_to_finish].result()
        assert settings()[:2] == loading[:2], "the other load still runs"
        finish[1 - first_to_finish].set()
        assert loads[1 - first_to_finish].result() == usual
        # The threads of the pool go on, so they show what each load left behind.
        assert {threads.submit(settings).result() for _ in range(8)} == {usual}
    assert settings() == usual


def test_a_thread_that_is_started_during_a_load_has_all_threads_of_pytorch(eight_threads):
    with importing(), ThreadPoolExecutor(1) as started:
        assert torch.get_num_threads() == 2
        assert started.submit(torch.get_num_threads).result() == 8
    assert torch.get_num_threads() == 8


def test_the_slowest_imports_wait_until_weights_are_read():
    program = (
        "import sys, talkinghead_lab.pipeline.pipeline; print(sys.modules.keys() & {'transformers', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
