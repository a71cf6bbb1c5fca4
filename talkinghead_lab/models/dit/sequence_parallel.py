"""Sequence parallelism: several GPUs of one host share the tokens of a forward pass.

Every process holds the full transformer and processes a share of each latent frame's tokens. Around
self-attention, all-to-all exchanges turn a share of the tokens with all heads into all tokens with a share of
the heads, and back (DeepSpeed Ulysses, arXiv 2309.14509).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from talkinghead_lab.models.kernels.attention import Rotation


@dataclass(frozen=True)
class SequenceParallelGroup:
    """The processes that share the tokens, as seen from one of them: its rank, their number, their group."""

    rank: int = 0
    size: int = 1
    name: str = ""

    @classmethod
    def of_all_processes(cls) -> "SequenceParallelGroup":
        """All processes of the default group, which must be initialised."""
        assert dist.group.WORLD is not None
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD.group_name)

    def if_divides(self, heads: int, tokens_per_frame: int) -> "SequenceParallelGroup":
        """This group if its size divides both numbers; otherwise a group of one process, with a warning."""
        if heads % self.size == 0 and tokens_per_frame % self.size == 0:
            return self
        warnings.warn(
            f"{heads} heads and {tokens_per_frame} tokens per latent frame are not divisible by {self.size} "
            "processes: each process computes all tokens of the forward passes they would share.",
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

    def merge(self, x: Tensor, frames: int) -> Tensor:
        """The tokens of all processes in their original order: the inverse of `split`."""
        if self.size == 1:
            return x
        shares = [share.unflatten(1, (frames, -1)) for share in self.all_gather(x)]
        return torch.stack(shares, dim=2).flatten(1, 3)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """The tensors that the processes pass for `x`, in rank order."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        gathered = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(gathered, x)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """The value that the first process passes, in every process; it can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def split_heads(self, x: Tensor) -> Tensor:
        """Group the heads by process: [B, l, heads, width] → [size, B, l, heads / size, width]."""
        return x.unflatten(2, (self.size, -1)).movedim(2, 0)

    def start_all_to_all(self, parts: Tensor) -> Tensor:
        """Start sending part i of [size, …] to process i and receiving theirs; `finish_all_to_all` waits.

        The functions of `torch.distributed` would wait at once when compiled; the op below does not.
        """
        if self.size == 1:
            return parts
        sizes = [1] * self.size
        return torch.ops._c10d_functional.all_to_all_single(parts.contiguous(), sizes, sizes, self.name)

    def finish_all_to_all(self, pending: Tensor) -> Tensor:
        """Wait for all tokens: [size, B, l, heads / size, width] → [B, L, heads / size, width].

        They are ordered by process. Attention does not depend on the order, as each carries its position.
        """
        return self._wait(pending).movedim(0, 1).flatten(1, 2)

    def return_heads(self, x: Tensor) -> Tensor:
        """The reverse exchange: [B, L, heads / size, width] → [B, l, heads, width]."""
        parts = x.unflatten(1, (self.size, -1)).movedim(1, 0)
        return self._wait(self.start_all_to_all(parts)).movedim(0, 2).flatten(2, 3)

    def first_tokens(self, x: Tensor, count: int) -> Tensor:
        """The first tokens in the original order of [B, L, …] that is ordered by process."""
        return x.unflatten(1, (self.size, -1))[:, :, : count // self.size].flatten(1, 2)

    def own_tokens(self, x: Tensor) -> Tensor:
        """This process's tokens of [B, L, …] that is ordered by process: [B, L / size, …]."""
        return x.unflatten(1, (self.size, -1))[:, self.rank]

    def start_sum(self, x: Tensor) -> Tensor:
        """Start summing `x` over the processes; `finish_sum` waits."""
        return x if self.size == 1 else torch.ops._c10d_functional.all_reduce(x, "sum", self.name)

    def finish_sum(self, pending: Tensor) -> Tensor:
        """Wait for the sum that `start_sum` began."""
        return self._wait(pending)

    def _wait(self, pending: Tensor) -> Tensor:
        return pending if self.size == 1 else torch.ops._c10d_functional.wait_tensor(pending)
