"""Decodes with two processes, each on its own GPU, that run one half of the layers each."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.vae.frame_by_frame import depth_first
from talkinghead_lab.models.vae.layers import CausalState, Upsample


def decode_together(
    layers: Sequence[nn.Module], pieces: Sequence[Tensor], state: CausalState, group: SequenceParallelGroup
) -> Iterator[Tensor]:
    """Run the decoder's layers on single latent frames; all processes of the group call this together.

    The first process runs the layers before the last upsampling, which take half of the time at the released
    sizes, while the second runs the others on the previous latent frame. Each layer computes what it would
    in one process, so the results are the same in every bit. More processes only receive them: what a layer
    computes of one frame is not split, nor could it be without other roundings.

    Args:
        layers: the layers of the decoder.
        pieces: latent frames, each [B, C, 1, h, w], the same in all processes.
        state: of the layers.
        group: at least two processes.

    Yields:
        The frames of each piece, [B, 3, f, H, W].
    """
    upsamples = [layer for layer in layers if isinstance(layer, Upsample)]
    split = list(layers).index(upsamples[-1])
    first, last = layers[:split], layers[split:]
    channels = cast(nn.Conv2d, upsamples[-1].resample["1"]).in_channels
    half_way = pieces[0].new_empty(0)
    for step in range(len(pieces) + 1):
        if group.rank == 1 and step > 0:
            made = [depth_first(last, frame, state) for frame in half_way.split(1, dim=2)]
            frames = torch.cat(made, dim=2)
        else:
            frames = _empty(pieces[0], 3, upsamples, very_first=step == 1)
        if step < len(pieces):
            half_way = _empty(pieces[0], channels, upsamples[:-1], very_first=step == 0)
            if group.rank == 0:
                half_way = depth_first(first, pieces[step], state)
            half_way = _broadcast(half_way, 0, group)
        if step > 0:
            yield _broadcast(frames, 1, group)


def _empty(piece: Tensor, channels: int, upsamples: Sequence[Upsample], very_first: bool) -> Tensor:
    """A tensor for the output of upsampling a latent frame, with the channels last in memory."""
    batch, _, _, height, width = piece.shape
    frames = 1 if very_first else 2 ** sum(layer.time_conv is not None for layer in upsamples)
    scale = 2 ** len(upsamples)
    return piece.new_empty(batch, frames, height * scale, width * scale, channels).movedim(-1, 1)


def _broadcast(x: Tensor, source: int, group: SequenceParallelGroup) -> Tensor:
    """The tensor of one process in all of them, with the channels last in memory as the layers leave it."""
    return group.broadcast_tensor(x.movedim(1, -1).contiguous(), source).movedim(-1, 1)
