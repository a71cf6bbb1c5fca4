"""Several GPUs of one host share the tokens of a forward (DeepSpeed Ulysses, arXiv 2309.14509).

Every process holds the whole transformer and a share of each latent frame's tokens. Around self-attention
they exchange: a share of the tokens with all heads becomes all tokens with a share of the heads, and back.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.attention import Rotation, attention


@dataclass(frozen=True)
class TokenShare:
    """The part of this process among `size` that share the tokens; `rank` is its place."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    def check(self, heads: int, tokens_per_frame: int) -> None:
        """Refuse what cannot be shared out evenly.

        Raises:
            InvalidRequest: the heads or a latent frame's tokens are no multiple of the processes.
        """
        for name, count in (("heads", heads), ("tokens of a latent frame", tokens_per_frame)):
            if count % self.size:
                raise InvalidRequest(
                    f"{count} {name} cannot be shared out evenly",
                    received=f"{self.size} processes",
                    allowed=f"divisors of {count}",
                    remedy="Use fewer GPUs, or another frame size.",
                )

    def split(self, x: Tensor, frames: int) -> Tensor:
        """This process's tokens of every latent frame: [B, L, …] → [B, L / size, …]."""
        return x.unflatten(1, (frames, self.size, -1))[:, :, self.rank].flatten(1, 2)

    def split_rotation(self, rotation: Rotation, frames: int) -> Rotation:
        """The rotary positions of this process's tokens."""
        share = object.__new__(Rotation)
        share.cosine = self.split(rotation.cosine[None], frames)[0]
        share.sine = self.split(rotation.sine[None], frames)[0]
        return share

    def gather(self, x: Tensor, frames: int) -> Tensor:
        """The tokens of all processes, in their order: the inverse of `split`."""
        shares = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(shares, x.contiguous(), group=self.group)
        return torch.stack([share.unflatten(1, (frames, -1)) for share in shares], dim=2).flatten(1, 3)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, kind: str) -> Tensor:
        """Attention of this process's tokens to those of all, [B, L / size, heads, head width]."""
        # [3, B, l, heads, d] → [size, 3, B, l, heads / size, d]: a part for each process.
        parts = torch.stack((query, key, value)).unflatten(3, (self.size, -1)).movedim(3, 0)
        query, key, value = self._exchange(parts).movedim(0, 2).flatten(2, 3)
        out = attention(query, key, value, kind)
        parts = out.unflatten(1, (self.size, -1)).movedim(1, 0)
        return self._exchange(parts).movedim(0, 2).flatten(2, 3)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Give part i to process i; what comes from it takes its place."""
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self.group)
        return received
