"""Forward passes of ours and of the peers that are found: seconds, memory, and how far outputs are apart."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from talkinghead_lab.bench.forwards import TIMESTEP, relative_error, velocity
from talkinghead_lab.bench.peers.checkout import Peer
from talkinghead_lab.bench.peers.diffusers import Diffusers
from talkinghead_lab.bench.peers.lightx2v import LightX2V
from talkinghead_lab.bench.peers.reference import Reference
from talkinghead_lab.bench.rows import Results, Row, measure
from talkinghead_lab.bench.sizes import Size, embedded, random_dit, random_inputs
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.fused_ops import ResidualUpdate

Build = Callable[[dict[str, Tensor], Size, torch.device, float], Peer]
WITH_AUDIO: tuple[Build, ...] = (LightX2V, Reference)
# Not found; installed or checked out in a version with other modules; out of memory.
FAILURES = (InvalidRequest, ImportError, AttributeError, TypeError, RuntimeError)
SPEAKERS = {1: "one speaker", 2: "two speakers"}


@torch.inference_mode()
def measure_peers(size: Size, device: torch.device, results: Results) -> None:
    """Measure ours and each peer that is found with one and two speakers, on the same random tensors.

    Errors are relative to ours, eager. Diffusers is compared with ours without audio layers.
    """
    dit = random_dit(size.dit, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    dit.use_attention("auto", device)
    weights, add = dict(dit.state_dict()), partial(_add, results=results, device=device)
    inputs = {count: random_inputs(size.dit, size.grid, device, count) for count in SPEAKERS}
    conditions = {count: embedded(dit, of) for count, of in inputs.items()}
    ours = {count: partial(velocity, dit, of.latent, conditions[count]) for count, of in inputs.items()}
    expected = {count: add(f"peer: ours, eager, {SPEAKERS[count]}", ours[count], None, {}) for count in ours}
    with _without_audio(dit):
        silent = add("peer: ours, eager, no audio layers", ours[1], None, {})
    for build in WITH_AUDIO:
        with _found(build, weights, size, device) as peer:
            for count in SPEAKERS if peer else ():
                label = f"peer: {peer.name}, {SPEAKERS[count]}"
                add(label, partial(peer.velocity, inputs[count]), expected[count], peer.stated)
    with _found(Diffusers, weights, size, device) as peer:
        for compiled in (False, True) if peer else ():
            label = f"peer: diffusers, {'compiled' if compiled else 'eager'}, no audio layers"
            if compiled:
                peer.compile()
            add(label, partial(peer.velocity, inputs[1]), silent, peer.stated)
    dit.compile_blocks()
    for count, forward in ours.items():
        add(f"peer: ours, compiled, {SPEAKERS[count]}", forward, expected[count], {})


def _add(
    name: str,
    forward: Callable[[], Tensor],
    expected: Tensor | None,
    stated: dict[str, Any],
    results: Results,
    device: torch.device,
) -> Tensor:
    """Add a row; return the velocity. The first call compiles."""
    out = forward()
    seconds, peak = measure(forward, device, repeats=2, warm_up=0)
    error = {} if expected is None else {"relative_error": relative_error(out, expected)}
    results.add(Row(name, seconds, peak_gib=peak, conditions=error | stated))
    return out


@contextmanager
def _found(build: Build, weights: dict[str, Tensor], size: Size, device: torch.device) -> Iterator[Any]:
    """A peer, or None if it is not found or cannot be built; one that fails is reported. Frees its memory."""
    peer = None
    try:
        peer = build(weights, size, device, TIMESTEP)
    except FAILURES as error:
        _report(error)
    try:
        yield peer
    except FAILURES as error:
        _report(error)
    del peer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _report(error: Exception) -> None:
    print(f"peers: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr, flush=True)


@contextmanager
def _without_audio(dit: DiT) -> Iterator[None]:
    """Let the layers that attend to the audio add nothing."""
    layers = [block.audio_cross_attn for block in dit.blocks]
    for layer in layers:
        layer.forward = lambda x, *_: ResidualUpdate(torch.zeros_like(x))  # type: ignore[method-assign]
    yield
    for layer in layers:
        del layer.forward
