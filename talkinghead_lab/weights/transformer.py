"""Loads the transformer: LoRAs merged, quantised, resident on the device or ready to stream."""

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from talkinghead_lab.foundation.imports import gc_disabled
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.offload.requirements import STREAMED_BLOCKS
from talkinghead_lab.offload.streamed_blocks import stream
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.load_settings import LoadSettings
from talkinghead_lab.weights.lora import merge_lora
from talkinghead_lab.weights.quantization import has_fp8, multiply_fp8, quantize_linears
from talkinghead_lab.weights.reading import convert

BLOCKS = STREAMED_BLOCKS["transformer"]
IMPORTED_MEANWHILE = (
    "transformers.models.umt5.modeling_umt5",
    "transformers.models.clip.modeling_clip",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "pyloudnorm",
)
# Seconds that a thread which is asked for the interpreter keeps it. Reading gives it away with every tensor,
# and would wait 5 ms each time to have it back from the imports.
TURN = 1e-5
# The part of PyTorch's threads that reads meanwhile. With one for every core, the import is in the way of one
# of them and the others wait for that: on 16 cores, 16 threads read 9 GB/s in place of 60, and 4 read 17.
READERS = 1 / 4


@contextmanager
def importing() -> Iterator[None]:
    """Import what encoders are built from meanwhile: it takes longer than reading the transformer.

    What fails here fails again, and is told, where an encoder is built.
    """
    turn, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(TURN)
    torch.set_num_threads(max(1, round(threads * READERS)))
    try:
        with gc_disabled(), ThreadPoolExecutor(1) as thread:
            for module in IMPORTED_MEANWHILE:
                thread.submit(importlib.import_module, module)
            yield
    finally:
        sys.setswitchinterval(turn)
        torch.set_num_threads(threads)


@importing()
def load_transformer(settings: LoadSettings) -> DiT:
    """Read the transformer. Offloaded, it stays in host memory, its blocks page-locked and ready to stream.

    Raises:
        CheckpointError: see `checkpoints` and `lora`.
    """
    compute, stored, device = settings.compute, settings.storage, settings.device
    # Blocks that are converted one by one leave their weights in the files until then.
    dtype = None if settings.offloaded and not settings.loras else compute
    dit = checkpoints.load_dit(settings.files, dtype, torch.device("cpu") if settings.offloaded else device)
    for lora in settings.loras:
        merge_lora(dit, lora.path, lora.scale)
    if settings.offloaded:
        stream(dit, BLOCKS, device, lambda block: _finish(block, compute, stored, device))
        convert(dit, compute)
        _let_go_of_files(dit)
    elif stored is not None:
        quantize_linears(dit.get_submodule(BLOCKS), stored)
    dit.use_attention(settings.attention, device)
    if has_fp8(device):
        multiply_fp8(dit)
    if settings.compiled:
        dit.compile_blocks()
    return dit


def _let_go_of_files(dit: DiT) -> None:
    """Copy what does not stream: a single small tensor in a mapped file keeps the whole file in memory."""
    streamed = {id(tensor) for tensor in dit.get_submodule(BLOCKS).large_tensors()}  # type: ignore[operator]
    for tensor in chain(dit.parameters(), dit.buffers()):
        if id(tensor) not in streamed:
            tensor.data = tensor.data.clone()


def _finish(block: nn.Module, compute: torch.dtype, stored: torch.dtype | None, device: torch.device) -> None:
    convert(block, compute)
    if stored is not None:
        quantize_linears(block.to(device), stored)
        block.to("cpu")
