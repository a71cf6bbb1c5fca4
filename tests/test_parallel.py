"""Two processes share a forward, and a whole run, and give what one gives."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.sequence_parallel import TokenShare
from talkinghead_lab.parallel import generate_in_parallel
from talkinghead_lab.runs import generate
from talkinghead_lab.video import read_frames
from tests.parity.test_dit import build, inputs


def velocity(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(timesteps=torch.tensor([500.0]), **inputs(1))


def one_of_two(rank: int, folder: str) -> None:
    """What a process does: its share of one forward; the first keeps the whole velocity."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = build()
    model.share_tokens(TokenShare.of_all_processes())
    torch.save(velocity(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_a_forward(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = velocity(build())
    assert torch.equal(first, second)
    assert (first - expected).norm() < 1e-5 * expected.norm()


def test_splitting_keeps_every_frames_order():
    tokens = torch.arange(2 * 3 * 8).view(2, 24, 1)  # B = 2, T = 3, S = 8
    shares = [TokenShare(rank, 4).split(tokens, 3) for rank in range(4)]
    assert shares[1][0, :, 0].tolist() == [2, 3, 10, 11, 18, 19]


@pytest.mark.parametrize(("heads", "tokens", "what"), [(3, 8, "3 heads"), (4, 9, "9 tokens")])
def test_what_cannot_be_shared_is_refused(heads, tokens, what):
    with pytest.raises(InvalidRequest, match=f"{what}.*received 2 processes"):
        TokenShare(0, 2).check(heads, tokens)


def test_two_speakers_are_refused(monkeypatch, request_for, recording):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidRequest, match="two speakers"):
        generate_in_parallel(request_for(second_audio_path=recording(1.0)), None)


@pytest.mark.slow
def test_torchrun_makes_the_run_of_one_process(tmp_path, request_for):
    request = request_for(max_frames=13, frame_size="96x32")  # three heads, twelve tokens a latent frame
    (tmp_path / "request.yaml").write_text(request.to_yaml())
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    # `--` because torchrun has options of its own that begin with `--run`.
    command += ["-m", "--", "talkinghead_lab", "generate", str(tmp_path / "request.yaml"), "--json"]
    done = subprocess.run(
        [sys.executable, *command, "--run", str(tmp_path / "shared")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    alone = generate(request, tmp_path / "alone", show_progress=False)
    shared, expected = (
        np.stack(list(read_frames(path))).astype(int) for path in (result["video_path"], alone.video_path)
    )
    # Float rounding flips single levels before the lossy coding, which spreads them a little.
    assert shared.shape == expected.shape
    assert ((shared - expected) ** 2).mean() < 255**2 / 10**5, "50 dB"
