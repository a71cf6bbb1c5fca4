"""Decodes a sampled latent piece by piece and collects the frames on the CPU."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.vae.model import VAE

logger = logging.getLogger(__name__)

# Takes a piece [3, f, H, W] on the device and the number of its first frame; returns the piece.
Finish = Callable[[Tensor, int], Tensor]


def decode_chunk(
    vae: VAE,
    latent: Tensor,
    finish: Finish = lambda piece, start: piece,
    on_frames: Callable[[Tensor], None] = lambda frames: None,
) -> Tensor:
    """Decode a latent [1, C, T, h, w] to frames [3, F, H, W], float32 on the CPU.

    If fp16 overflows, the decoder switches to fp32 and decodes again; frames before the overflow stay.

    Args:
        vae: decodes on its own device, one piece at a time.
        latent: of one chunk.
        finish: applied to each piece on the device.
        on_frames: called with each piece of the result, in order, while the next is decoded.

    Raises:
        CheckpointError: the frames contain NaN or infinity.
    """
    _, _, latents, height, width = latent.shape
    count, pixels = 1 + vae.config.frames_per_latent * (latents - 1), vae.config.pixels_per_latent
    frames, done = torch.empty(3, count, height * pixels, width * pixels), 0
    while done < count:
        for start, piece, is_finite in _pieces(vae, latent, finish):
            end = start + piece.shape[1]
            if end <= done:
                continue
            if not is_finite:
                _handle_overflow(vae)
                break
            frames[:, start:end] = piece
            on_frames(frames[:, start:end])
            done = end
    return frames


def _handle_overflow(vae: VAE) -> None:
    """Switch the decoder from fp16 to fp32."""
    if vae.decode_type != torch.float16:
        raise CheckpointError(
            "the decoded frames contain NaN or infinity",
            remedy="Check the weights, the strength of LoRAs and the guidance scales.",
        )
    logger.warning("fp16 overflowed while decoding; decoding again in fp32.")
    with torch.inference_mode(False):
        vae.set_decoder_dtype(torch.float32)


def _pieces(vae: VAE, latent: Tensor, finish: Finish) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Pieces on the CPU, each with the number of its first frame and whether it is finite."""
    start = 0
    for piece, is_finite in _copied_to_host(_finished(vae, latent, finish)):
        yield start, piece, is_finite
        start += piece.shape[1]


def _finished(vae: VAE, latent: Tensor, finish: Finish) -> Iterator[Tensor]:
    start = 0
    for (piece,) in vae.decode_pieces(latent):
        yield finish(piece, start)
        start += piece.shape[1]


def _copied_to_host(pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Copy pieces to the CPU while the next one is computed, so that the device never waits for the host.

    Yields:
        A piece, and whether all of it is finite: the device finds out in a fraction of the host's time.
    """
    sent = deque[tuple[Tensor, Tensor, Any]]()
    for piece in pieces:
        runtime = torch.get_device_module(piece.device)
        arrived = runtime.Event()
        # Non-blocking copies go to page-locked memory, which PyTorch's allocator reuses.
        copies = (x.to("cpu", non_blocking=True) for x in (piece, piece.isfinite().all()))
        sent.append((*copies, arrived))
        arrived.record(runtime.current_stream(piece.device))
        if len(sent) > 1:
            yield _wait_for(*sent.popleft())
    yield from starmap(_wait_for, sent)


def _wait_for(piece: Tensor, is_finite: Tensor, arrived: Any) -> tuple[Tensor, Tensor]:
    arrived.synchronize()
    return piece, is_finite
