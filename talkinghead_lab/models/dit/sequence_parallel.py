"""Several GPUs of one host share the tokens of a forward (DeepSpeed Ulysses, arXiv 2309.14509).

Every process holds the whole transformer and a share of each latent frame's tokens. Around self-attention
they exchange: a share of the tokens with all heads becomes all tokens with a share of the heads, and back.
"""

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from talkinghead_lab.models.kernels.attention import Rotation


@dataclass(frozen=True)
class SequenceParallelGroup:
    """The part of one process, `rank`, of the `size` in a `group` that share the tokens."""

    rank: int = 0
    size: int = 1
    group: str = ""

    @classmethod
    def of_all_processes(cls) -> "SequenceParallelGroup":
        """The share of this process among all of the default group, which must exist."""
        assert dist.group.WORLD is not None
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD.group_name)

    def fitting(self, heads: int, tokens_per_frame: int) -> "SequenceParallelGroup":
        """This share where it divides heads and tokens evenly, else all tokens, and a warning."""
        if heads % self.size == 0 and tokens_per_frame % self.size == 0:
            return self
        warnings.warn(
            f"{heads} heads and {tokens_per_frame} tokens of a latent frame cannot be shared evenly by "
            f"{self.size} processes: each computes all of them in forwards that are shared.",
            stacklevel=2,
        )
        return SequenceParallelGroup()

    def split(self, x: Tensor, frames: int) -> Tensor:
        """This process's tokens of every latent frame: [B, L, …] → [B, L / size, …]."""
        return x.unflatten(1, (frames, self.size, -1))[:, :, self.rank].flatten(1, 2)

    def split_rotation(self, rotation: Rotation, frames: int) -> Rotation:
        """The rotary positions of this process's tokens."""
        cosine, sine = (self.split(table[None], frames)[0] for table in (rotation.cosine, rotation.sine))
        return Rotation(cosine, sine)

    def gather(self, x: Tensor, frames: int) -> Tensor:
        """The tokens of all processes, in their order: the inverse of `split`."""
        if self.size == 1:
            return x
        shares = [share.unflatten(1, (frames, -1)) for share in self.of_all(x)]
        return torch.stack(shares, dim=2).flatten(1, 3)

    def of_all(self, x: Tensor) -> list[Tensor]:
        """What every process has in the place of `x`, in their order."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        each = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(each, x)
        return each

    def parts(self, x: Tensor) -> Tensor:
        """The heads for each process apart: [B, l, heads, width] → [size, B, l, heads / size, width]."""
        return x.unflatten(2, (self.size, -1)).movedim(2, 0)

    def send(self, parts: Tensor) -> Tensor:
        """Begin to give part i of [size, …] to process i; `received` waits for what comes in their place.

        Not by `torch.distributed`'s functions, which wait at once where they are compiled.
        """
        if self.size == 1:
            return parts
        each = [1] * self.size
        return torch.ops._c10d_functional.all_to_all_single(parts.contiguous(), each, each, self.group)

    def received(self, sent: Tensor) -> Tensor:
        """What others sent: the tokens of all processes, one after another, with the heads of this one.

        [size, B, l, heads / size, width] → [B, L, heads / size, width]. Attention does not ask for the order
        of tokens, which carry their positions.
        """
        return self._arrived(sent).movedim(0, 1).flatten(1, 2)

    def send_back(self, x: Tensor) -> Tensor:
        """The inverse of sending and receiving: [B, L, heads / size, width] → [B, l, heads, width]."""
        parts = x.unflatten(1, (self.size, -1)).movedim(1, 0)
        return self._arrived(self.send(parts)).movedim(0, 2).flatten(2, 3)

    def _arrived(self, sent: Tensor) -> Tensor:
        return sent if self.size == 1 else torch.ops._c10d_functional.wait_tensor(sent)
