"""The attention map of two speakers, over processes and with an odd number of heads."""

from dataclasses import replace

import pytest
import torch

from talkinghead_lab.bench.sizes import SIZES
from talkinghead_lab.models.dit.blocks import SelfAttention
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup

FRAMES, FRAME_TOKENS, WIDTH = 2, 6, 16


@pytest.mark.parametrize(("heads", "counted"), [(1, 1), (2, 2), (3, 2)])
def test_processes_sum_the_maps_of_their_heads_to_the_mean_of_an_even_number(heads, counted):
    layer = SelfAttention(replace(SIZES["tiny"].dit, dim=heads * WIDTH, num_heads=heads))
    query, key = torch.randn(2, 1, FRAMES * FRAME_TOKENS, heads, WIDTH)
    regions = torch.eye(3).repeat_interleave(FRAME_TOKENS // 3, dim=1)
    weights = torch.einsum("blnd,bsnd->nbls", query, key[:, :FRAME_TOKENS]) / WIDTH**0.5
    expected = (weights.softmax(dim=-1)[:counted].mean(dim=0) @ regions.T / (FRAME_TOKENS // 3)).mT
    alone = layer.attention_map(query, key, regions, SequenceParallelGroup())
    torch.testing.assert_close(alone, expected)
    groups = [SequenceParallelGroup(rank, heads) for rank in range(heads)]
    # Of each process: its heads of all tokens, which are ordered by process.
    ordered = [torch.cat([group.split(x, FRAMES) for group in groups], dim=1) for x in (query, key)]
    maps = [
        layer.attention_map(*(x[:, :, group.rank : group.rank + 1] for x in ordered), regions, group)
        for group in groups
    ]
    own = [group.own_tokens(sum(maps).mT) for group in groups]
    for group, part in zip(groups, own, strict=True):
        torch.testing.assert_close(part, group.split(expected.mT, FRAMES))
