"""Decodes several small frames at once on a CPU, each in a thread of its own.

Threads that share an operator wait for each other at its end, which on small frames comes every few hundred
microseconds; on a busy machine they wait for one that is not running. Threads that compute different frames
wait only where a layer needs the previous frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from threading import Barrier, Semaphore
from typing import TypeVar

import torch
from torch import Tensor, nn

from talkinghead_lab.models.vae.layers import CausalState, Upsample

Item = TypeVar("Item")
# Pixels of the largest frame that is decoded so. Operators on larger ones use all threads well, and every
# frame under way takes memory.
LARGEST_FRAME = 256 * 256


def decode_concurrently(
    layers: Sequence[nn.Module], pieces: Iterable[Tensor], state: CausalState
) -> Iterator[Tensor]:
    """Run the decoder's layers on single latent frames, as many at once as PyTorch has threads.

    Each frame enters a layer when the previous one has left it. No gradients are recorded.

    Args:
        layers: the layers of the decoder.
        pieces: latent frames, each [B, C, 1, h, w].
        state: of the layers.

    Yields:
        The frames of each piece, [B, 3, f, H, W].
    """
    split = 1 + max((i for i, layer in enumerate(layers) if _makes_frames(layer)), default=-1)
    with _single_threaded_workers(torch.get_num_threads()) as pool:
        first, last = (_InTurn(pool, part, state) for part in (layers[:split], layers[split:]))
        pieces = (frames.result() for frames in _one_ahead(map(first.submit, pieces)))
        decoded = ([last.submit(frame) for frame in piece.split(1, dim=2)] for piece in pieces)
        for frames in _one_ahead(decoded):
            yield torch.cat([frame.result() for frame in frames], dim=2)


def _makes_frames(layer: nn.Module) -> bool:
    return isinstance(layer, Upsample) and layer.time_conv is not None


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item once the next has been made, so that the workers always have something to do."""
    return (item for item, _ in pairwise(chain(items, [None])) if item is not None)


class _InTurn:
    """Runs layers on one input after another in the threads of a pool.

    Args:
        pool: starts work in order of submission; otherwise all threads could wait for a frame not started.
        layers: run in order.
        state: of the layers.
    """

    def __init__(self, pool: ThreadPoolExecutor, layers: Sequence[nn.Module], state: CausalState) -> None:
        self.pool, self.layers, self.state = pool, layers, state
        self.inference = torch.is_inference_mode_enabled()
        self.left_layers = Semaphore(len(layers))

    def submit(self, x: Tensor) -> Future[Tensor]:
        """Queue an input; the future gives the output of the last layer."""
        previous, self.left_layers = self.left_layers, Semaphore(0)
        return self.pool.submit(self._run, x, previous, self.left_layers)

    def _run(self, x: Tensor, previous: Semaphore, own: Semaphore) -> Tensor:
        try:
            # Both modes belong to a thread.
            with torch.no_grad(), torch.inference_mode(self.inference):
                for layer in self.layers:
                    previous.acquire()
                    x = layer(x, self.state)
                    own.release()
            return x
        finally:
            # After an error the next input must not wait forever; nobody takes its output.
            own.release(1 + len(self.layers))


@contextmanager
def _single_threaded_workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which PyTorch's operators use no others."""
    started, usual = Barrier(count + 1), torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # a thread's first call takes over the number that was set last, anywhere
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(count, initializer=start) as pool:
        for _ in range(count):
            pool.submit(int)
        started.wait()
        # OpenMP keeps the number for each thread; threads started later take over the one that was set last.
        torch.set_num_threads(usual)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
