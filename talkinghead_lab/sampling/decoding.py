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

Finish = Callable[[Tensor], Tensor]


def decode_chunk(vae: VAE, latent: Tensor, finish: Finish | None = None) -> Tensor:
    """Decode a latent [1, C, T, h, w] to frames [3, F, H, W], float32 on the CPU.

    If fp16 overflows, the decoder switches to fp32 and decodes again.

    Args:
        vae: decodes on its own device, one piece at a time.
        latent: of one chunk.
        finish: applied to each piece [3, f, H, W] on the device.

    Raises:
        CheckpointError: the frames contain NaN or infinity.
    """
    frames = _decode(vae, latent, finish)
    if frames.isfinite().all():
        return frames
    if vae.decode_type == torch.float16:
        logger.warning("fp16 overflowed while decoding; decoding again in fp32.")
        with torch.inference_mode(False):
            vae.set_decoder_dtype(torch.float32)
        return decode_chunk(vae, latent, finish)
    raise CheckpointError(
        "the decoded frames contain NaN or infinity",
        remedy="Check the weights, the strength of LoRAs and the guidance scales.",
    )


def _decode(vae: VAE, latent: Tensor, finish: Finish | None) -> Tensor:
    _, _, latents, height, width = latent.shape
    count, pixels = 1 + vae.config.frames_per_latent * (latents - 1), vae.config.pixels_per_latent
    frames, start = torch.empty(3, count, height * pixels, width * pixels), 0
    pieces = (finish(piece) if finish else piece for (piece,) in vae.decode_pieces(latent))
    for piece in _copied_to_host(pieces):
        frames[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return frames


def _copied_to_host(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Copy pieces to the CPU while the next one is computed, so that the device never waits for the host."""
    sent = deque[tuple[Tensor, Any]]()
    for piece in pieces:
        runtime = torch.get_device_module(piece.device)
        arrived = runtime.Event()
        # A non-blocking copy goes to page-locked memory, which PyTorch's allocator reuses.
        sent.append((piece.to("cpu", non_blocking=True), arrived))
        arrived.record(runtime.current_stream(piece.device))
        if len(sent) > 1:
            yield _wait_for(*sent.popleft())
    yield from starmap(_wait_for, sent)


def _wait_for(piece: Tensor, arrived: Any) -> Tensor:
    arrived.synchronize()
    return piece
