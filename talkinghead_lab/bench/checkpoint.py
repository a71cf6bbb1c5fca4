"""A checkpoint of random weights in the released layout, for the parts that load from disk."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoder
from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.models.encoders.text import TextEncoder
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.training.networks import vocabulary
from talkinghead_lab.weights.locating import RELEASED_REPOSITORIES, TRANSFORMER
from talkinghead_lab.weights.writing import Networks, write_checkpoint

# Largest transformer shard: gives seven in bf16, the released number.
SHARD_BYTES = 5 * 10**9
TILE_ELEMENTS = 2**24
SPREAD = 0.02  # standard deviation of every weight, norms included
STORED = torch.bfloat16


def random_checkpoint(folder: Path, size: Size) -> dict[str, str]:
    """Write a checkpoint if `folder` does not exist; return the request fields that select it."""
    if not folder.exists():
        with torch.device("meta"):
            networks = Networks(
                DiT(size.dit),
                VAE(size.vae),
                TextEncoder(size.text),
                ImageEncoder(size.image),
                SpeechEncoder(size.speech),
            )
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        write_checkpoint(unfinished, networks, vocabulary(), STORED, save=_write_shards)
        unfinished.rename(folder)
    return {"checkpoint": "released"} | {name: str(folder / name) for name in RELEASED_REPOSITORIES}


def _write_shards(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write random values in the shapes of `tensors`; the transformer is split into shards."""
    shards = list(_shards(tensors, dtype)) if path.stem == TRANSFORMER else [dict(tensors)]
    for number, shard in enumerate(shards, start=1):
        name = f"{path.stem}-{number:05}-of-{len(shards):05}{path.suffix}"
        _write_file(path if len(shards) == 1 else path.with_name(name), shard, dtype)


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if sum(t.numel() for t in shard.values()) * dtype.itemsize >= SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _write_file(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write one safetensors file of random values; needs as much memory as the file is large."""
    counts = [tensor.numel() for tensor in tensors.values()]
    generator = torch.Generator().manual_seed(0)
    tile = (SPREAD * torch.randn(TILE_ELEMENTS, generator=generator)).to(dtype)
    # Drawing every value would take minutes, so one tile of values is repeated.
    values = tile.repeat(math.ceil(sum(counts) / TILE_ELEMENTS))[: sum(counts)]
    parts = torch.split(values, counts)
    named = zip(tensors.items(), parts, strict=True)
    save_file({name: part.view(tensor.shape) for (name, tensor), part in named}, path)
