"""Sequence parallelism: several GPUs of one host share the tokens of a forward pass.

Every process holds the full transformer and processes a share of each latent frame's tokens. For
self-attention, they exchange heads (`head_exchange`).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from talkinghead_lab.models.dit.head_exchange import HeadExchange, open_exchange
from talkinghead_lab.models.kernels.attention import Rotation

# Of speech embeddings: a minute, 55 MB at the released size.
SLICE_ROWS = 1500


@dataclass(frozen=True)
class SequenceParallelGroup:
    """The processes that share the tokens, as one of them sees them: rank, size, exchange."""

    rank: int = 0
    size: int = 1
    exchange: HeadExchange | None = None

    @classmethod
    def of_all_processes(cls, device: torch.device) -> "SequenceParallelGroup":
        """All processes of the default group, which must be initialised; each calls this with its device."""
        rank, size = dist.get_rank(), dist.get_world_size()
        return cls(rank, size, open_exchange(rank, size, device))

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

    def broadcast_rows(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors that the first process passes, in every process; others receive them in host memory.

        They are sent in slices, since NCCL takes them through the memory of the device.
        """
        if self.size == 1:
            return tensors
        counts = self.broadcast([len(tensor.split(SLICE_ROWS)) for tensor in tensors])
        received = []
        for number, count in enumerate(counts):
            # Copied: a pickled view holds the whole tensor.
            slices = [each.cpu().clone() for each in tensors[number].split(SLICE_ROWS)] if tensors else []
            received.append(torch.cat([self.broadcast(slices[i] if slices else None) for i in range(count)]))
        return received

    def broadcast_tensor(self, x: Tensor, source: int) -> Tensor:
        """The contiguous tensor of one process, in every process, which passes one of that shape and type."""
        dist.broadcast(x, source)
        return x

    def first_tokens(self, x: Tensor, count: int) -> Tensor:
        """The first tokens in the original order of [B, L, …] that is ordered by process."""
        return x.unflatten(1, (self.size, -1))[:, :, : count // self.size].flatten(1, 2)

    def own_tokens(self, x: Tensor) -> Tensor:
        """This process's tokens of [B, L, …] that is ordered by process: [B, L / size, …]."""
        return x.unflatten(1, (self.size, -1))[:, self.rank]
