"""Layers of the video autoencoder run so that one frame at a time is held at full size.

They look only backwards in time, so the sums are those of whole pieces. Where encoding joins frames, one
waits for the next; where decoding makes several of one, the first goes through the rest before the second.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from talkinghead_lab.models.vae.layers import CausalState, Downsample, memory_of, same_memory


class FrameStream:
    """The encoder's layers, into which frames are pushed one by one.

    A layer whose input repeats and whose memory stands still gives the same output for ever, and is not run
    again.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.state: CausalState = {}
        self.settled: dict[nn.Module, Tensor] = {}
        self.waiting: dict[nn.Module, tuple[Tensor, bool]] = {}

    def push(self, x: Tensor, still: bool) -> Tensor | None:
        """What a frame [B, 3, 1, H, W] becomes; None where a layer joins it with the next.

        Args:
            x: the frame.
            still: it equals the one before.
        """
        for layer in self.layers:
            # The very first frame is not joined.
            if isinstance(layer, Downsample) and layer.time_conv is not None and layer in self.state:
                if layer not in self.waiting:
                    self.waiting[layer] = x, still
                    return None
                earlier, stood_still = self.waiting.pop(layer)
                x, still = torch.cat([earlier, x], dim=2), still and stood_still
            x, still = self._run(layer, x, still)
        return x

    def _run(self, layer: nn.Module, x: Tensor, still: bool) -> tuple[Tensor, bool]:
        """The layer's output, and whether it equals the one before."""
        if still and layer in self.settled:
            return self.settled[layer], True
        self.settled.pop(layer, None)
        before = memory_of(layer, self.state) if still else None
        x = layer(x, self.state)
        if before is not None and same_memory(before, memory_of(layer, self.state)):
            self.settled[layer] = x
        return x, False


def depth_first(layers: Sequence[nn.Module], x: Tensor, state: CausalState) -> Tensor:
    """Run layers on one frame; of the frames that it becomes, each goes through the rest before the next."""
    for place, layer in enumerate(layers, start=1):
        x = layer(x, state)
        if x.shape[2] > 1 and place < len(layers):
            rest = layers[place:]
            return torch.cat([depth_first(rest, frame, state) for frame in x.split(1, dim=2)], dim=2)
    return x
