"""Frames of a sampled latent, decoded piece by piece and gathered on the CPU."""

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
    """The frames [3, F, H, W] of a latent [1, C, T, h, w], float32 on the CPU.

    Weights of fp16 are exchanged for fp32 if values become too large for them.

    Args:
        vae: decodes where its weights are; one piece at a time is there.
        latent: of one video.
        finish: what is done to each piece [3, f, H, W] on the device.

    Raises:
        CheckpointError: the frames are no numbers.
    """
    frames = _gathered(vae, latent, finish)
    if frames.isfinite().all():
        return frames
    if vae.conv2.weight.dtype == torch.float16:
        logger.warning("Values are too large for fp16: decoding again in fp32.")
        with torch.inference_mode(False):
            vae.set_decoder_dtype(torch.float32)
        return decode_chunk(vae, latent, finish)
    raise CheckpointError(
        "the frames came out as no numbers",
        remedy="Check the weights, the strength of LoRAs and the guidance scales.",
    )


def _gathered(vae: VAE, latent: Tensor, finish: Finish | None) -> Tensor:
    _, _, latents, height, width = latent.shape
    count, pixels = 1 + vae.config.frames_per_latent * (latents - 1), vae.config.pixels_per_latent
    frames, start = torch.empty(3, count, height * pixels, width * pixels), 0
    pieces = (finish(piece) if finish else piece for (piece,) in vae.decode_pieces(latent))
    for piece in _brought_to_host(pieces):
        frames[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return frames


def _brought_to_host(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The pieces on the CPU, each once the next is under way: the device does not wait for the host."""
    sent = deque[tuple[Tensor, Any]]()
    for piece in pieces:
        runtime = torch.get_device_module(piece.device)
        arrived = runtime.Event()
        # To page-locked memory, which PyTorch keeps for the next piece but one.
        sent.append((piece.to("cpu", non_blocking=True), arrived))
        arrived.record(runtime.current_stream(piece.device))
        if len(sent) > 1:
            yield _arrived(*sent.popleft())
    yield from starmap(_arrived, sent)


def _arrived(piece: Tensor, arrived: Any) -> Tensor:
    arrived.synchronize()
    return piece
