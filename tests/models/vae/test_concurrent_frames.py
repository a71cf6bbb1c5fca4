"""Frames decoded at the same time equal frames decoded one by one; errors end the work."""

import threading

import pytest
import torch
from torch import nn

from talkinghead_lab.models.vae import model as vae_model
from talkinghead_lab.models.vae.concurrent_frames import decode_concurrently
from talkinghead_lab.models.vae.model import VAE
from tests.models.vae.test_model import TINY, build, latent


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads; the test's own number comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("latents", [1, 6])
def test_frames_equal_those_of_one_thread(threads, count, latents):
    vae = build(TINY)
    with torch.inference_mode():
        threads(1)
        expected = vae.decode(latent(latents))
        threads(count)
        pieces = list(vae.decode_pieces(latent(latents)))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4, 4, 4][:latents]
    assert torch.equal(torch.cat(pieces, dim=2), expected)
    assert torch.get_num_threads() == count


def test_large_frames_and_gradients_take_the_other_way(threads, monkeypatch):
    vae: VAE = build(TINY)
    monkeypatch.setattr(vae_model, "decode_concurrently", lambda *_: pytest.fail("decoded concurrently"))
    threads(2)
    sample = latent(2).requires_grad_()
    vae.decode(sample).sum().backward()
    assert sample.grad.abs().max() > 0
    monkeypatch.setattr(vae_model, "LARGEST_FRAME", 16 * 24 - 1)
    with torch.no_grad():
        assert vae.decode(latent(2)).shape == (1, 3, 5, 16, 24)


class Failing(nn.Module):
    """Fails at its third frame."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, state):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("the third frame")
        return x


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_error_is_raised_and_leaves_no_thread(threads, position):
    layers: list[nn.Module] = [nn.Identity() for _ in range(2)]
    for layer in layers:
        layer.forward = lambda x, state: x
    layers.insert(position, Failing())
    threads(2)
    before = threading.active_count()
    done = []
    with pytest.raises(RuntimeError, match="the third frame"):
        done.extend(decode_concurrently(layers, latent(6).split(1, dim=2), {}))
    assert len(done) == 2
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_a_caller_that_stops_ends_the_threads(threads):
    threads(2)
    before = threading.active_count()
    with torch.inference_mode():
        pieces = build(TINY).decode_pieces(latent(6))
        assert next(pieces).shape[2] == 1
        assert threading.active_count() == before + 2
        pieces.close()
    assert threading.active_count() == before
