"""What processes send each other to share self-attention; `runs/test_parallel.py` shares forward passes."""

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from talkinghead_lab.models.dit.head_exchange import (
    ATTENDED,
    KEY,
    QUERY,
    VALUE,
    CollectiveExchange,
    PeerMemoryExchange,
    of_rows,
    open_exchange,
)
from talkinghead_lab.models.kernels.block_types import quantize_q8_0
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows

ROWS, WIDTH = 6, 64


def linears() -> dict[str, nn.Module]:
    plain = nn.Linear(WIDTH, ROWS)
    weight, bias = plain.weight.detach(), plain.bias.detach()
    multiplying = RowQuantizedLinear(*quantize_rows(weight, FP8), bias)
    multiplying.uses_fp8_matmul = True
    return {
        "plain": plain,
        "without bias": nn.Linear(WIDTH, ROWS, bias=False),
        "int8": RowQuantizedLinear(*quantize_rows(weight, torch.int8), bias),
        "fp8 matmul": multiplying,
        "Q8_0": BlockQuantizedLinear(quantize_q8_0(weight), "Q8_0", bias),
    }


@pytest.mark.parametrize("name", linears())
def test_a_layer_of_some_rows_computes_those_outputs_and_shares_the_weight(name):
    layer, x = linears()[name], torch.randn(2, 3, WIDTH)
    part = of_rows(layer, slice(2, 5))
    torch.testing.assert_close(part(x), layer(x)[..., 2:5])
    assert part.weight.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
    assert layer(x).shape[-1] == ROWS


def exchanged_on_gpus(rank: int, folder: str) -> None:
    """Send all tensors twice through both exchanges; the second time more than was reserved."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", f"file://{folder}/meeting", rank=rank, world_size=2)
    peer, collective = open_exchange(rank, 2, device), CollectiveExchange(rank, 2)
    assert isinstance(peer, PeerMemoryExchange)
    for tokens in (100, 5000):
        sent = torch.randn(2, 1, tokens, 2, 128, device=device, dtype=torch.bfloat16)
        arrived = []
        for exchange in (peer, collective):
            for tensor in (KEY, QUERY, VALUE):
                exchange.send(tensor, (sent + tensor).__getitem__)
            arrived.append([each.clone() for each in exchange.receive(KEY, QUERY, VALUE)])
            exchange.send(ATTENDED, (sent + ATTENDED).__getitem__)
            arrived[-1].append(exchange.receive(ATTENDED)[0][1 - rank].clone())
        assert all(map(torch.equal, *arrived))
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_peer_memory_delivers_what_collectives_deliver(tmp_path):
    multiprocessing.spawn(exchanged_on_gpus, (str(tmp_path),), nprocs=2)
