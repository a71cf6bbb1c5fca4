"""Loads the transformer: LoRAs merged or attached, quantised, resident on the device or ready to stream."""

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import cast

import torch
from torch import nn

from talkinghead_lab.foundation.imports import gc_disabled
from talkinghead_lab.foundation.process_wide import process_wide
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.offload.requirements import STREAMED_BLOCKS
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks, stream
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.load_settings import LoadSettings
from talkinghead_lab.weights.lora import merge_lora
from talkinghead_lab.weights.lora.attach import AttachedLoras
from talkinghead_lab.weights.quantization import fp8_types, multiply_fp8, quantize_linears
from talkinghead_lab.weights.reading import convert

BLOCKS = STREAMED_BLOCKS["transformer"]
BACKGROUND_IMPORTS = (
    "transformers.models.umt5.modeling_umt5",
    "transformers.models.clip.modeling_clip",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "pyloudnorm",
)
# GIL switch interval in seconds while loading. Reading a tensor releases the GIL and would wait the default
# 5 ms each time until the imports hand it back.
SWITCH_INTERVAL = 1e-5
# The share of PyTorch's threads that reads. With a thread on every core, the import delays one of them and
# the others wait for it: on 16 cores, 16 threads read 9 GB/s instead of 60, and 4 read 17.
READER_SHARE = 1 / 4


@process_wide
@contextmanager
def _short_switch_interval() -> Iterator[int]:
    """Shorten the GIL switch interval; yields the number of threads that PyTorch used before."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield torch.get_num_threads()
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def importing() -> Iterator[None]:
    """Import the encoders' libraries in a background thread; that takes longer than reading the transformer.

    An import that fails here fails again, and is reported, when the encoder is built. Loads may overlap.
    """
    with _short_switch_interval() as threads:
        # OpenMP keeps the number for each thread that calls PyTorch, so every load sets and restores its own.
        torch.get_num_threads()  # a thread's first call takes over the number that was set last, anywhere
        torch.set_num_threads(max(1, round(threads * READER_SHARE)))
        try:
            with gc_disabled(), ThreadPoolExecutor(1) as background:
                # So would threads that are started meanwhile: another thread sets the usual number.
                background.submit(torch.set_num_threads, threads).result()
                for module in BACKGROUND_IMPORTS:
                    background.submit(importlib.import_module, module)
                yield
        finally:
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
        if lora.scale is not None:
            merge_lora(dit, lora.path, lora.scale)
    attached = attached_loras(dit, settings)
    if settings.offloaded:
        names = {id(block): f"{BLOCKS}.{name}" for name, block in dit.get_submodule(BLOCKS).named_children()}

        def finish(block: nn.Module) -> None:
            _finish(block, compute, stored, device)
            attached.attach(names[id(block)])

        stream(dit, BLOCKS, device, finish)
        convert(dit, compute)
        for part, _ in dit.named_children():
            if part != BLOCKS:
                attached.attach(part)
        _let_go_of_files(dit)
    else:
        if stored is not None:
            quantize_linears(dit.get_submodule(BLOCKS), stored)
        attached.attach_all()
    dit.use_attention(settings.attention, device)
    if settings.fp8_matmuls:
        multiply_fp8(dit.get_submodule(BLOCKS), fp8_types(device))
    if settings.compiled:
        dit.compile_blocks()
    return dit


def attached_loras(dit: DiT, settings: LoadSettings) -> AttachedLoras:
    """The LoRAs that are kept beside the weights; errors as `AttachedLoras`."""
    paths = [lora.path for lora in settings.loras if lora.scale is None]
    return AttachedLoras(dit, paths, settings.device, settings.compute)


def _let_go_of_files(dit: DiT) -> None:
    """Copy the tensors that do not stream: one small mapped tensor keeps its complete file in memory."""
    blocks = cast(StreamedBlocks, dit.get_submodule(BLOCKS))
    streamed = {id(tensor) for tensor in blocks.large_tensors()}
    for tensor in chain(dit.parameters(), dit.buffers()):
        if id(tensor) not in streamed:
            tensor.data = tensor.data.clone()


def _finish(block: nn.Module, compute: torch.dtype, stored: torch.dtype | None, device: torch.device) -> None:
    convert(block, compute)
    if stored is not None:
        quantize_linears(block.to(device), stored)
        block.to("cpu")
