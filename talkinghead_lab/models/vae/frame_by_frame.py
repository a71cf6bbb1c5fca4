"""Runs the layers of the video autoencoder with one frame in memory at full resolution.

The layers are causal in time, so the results equal those of longer pieces. Where the encoder joins frames,
one waits for the next. Where the decoder makes several frames of one, each passes through the remaining
layers before the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from talkinghead_lab.models.vae.layers import CausalState, Downsample, equal_states, state_of


class FrameStream:
    """Runs the encoder's layers frame by frame.

    Once the input of a layer repeats and its state no longer changes, its output is constant as long as the
    input repeats, and the layer is not run again.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.state: CausalState = {}
        self.constant_outputs: dict[nn.Module, Tensor] = {}
        self.waiting: dict[nn.Module, tuple[Tensor, bool]] = {}

    def push(self, x: Tensor, repeated: bool) -> Tensor | None:
        """Encode a frame.

        Args:
            x: the frame, [B, 3, 1, H, W].
            repeated: whether it equals the previous frame.

        Returns:
            The output of the last layer, or None if a layer waits for the next frame to join the two.
        """
        for layer in self.layers:
            # The very first frame is not joined.
            if isinstance(layer, Downsample) and layer.time_conv is not None and layer in self.state:
                if layer not in self.waiting:
                    self.waiting[layer] = x, repeated
                    return None
                earlier, earlier_repeated = self.waiting.pop(layer)
                x, repeated = torch.cat([earlier, x], dim=2), repeated and earlier_repeated
            x, repeated = self._run(layer, x, repeated)
        return x

    def _run(self, layer: nn.Module, x: Tensor, repeated: bool) -> tuple[Tensor, bool]:
        """The layer's output, and whether it equals the previous output."""
        if repeated and layer in self.constant_outputs:
            return self.constant_outputs[layer], True
        self.constant_outputs.pop(layer, None)
        before = state_of(layer, self.state) if repeated else None
        x = layer(x, self.state)
        if before is not None and equal_states(before, state_of(layer, self.state)):
            self.constant_outputs[layer] = x
        return x, False


def depth_first(layers: Sequence[nn.Module], x: Tensor, state: CausalState) -> Tensor:
    """Run layers on one frame; if a layer makes several, each passes the remaining layers before the next."""
    for position, layer in enumerate(layers, start=1):
        x = layer(x, state)
        if x.shape[2] > 1 and position < len(layers):
            rest = layers[position:]
            return torch.cat([depth_first(rest, frame, state) for frame in x.split(1, dim=2)], dim=2)
    return x
