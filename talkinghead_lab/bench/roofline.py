"""Upper bounds of this machine at the transformer's sizes: matmuls, attention, copies."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from talkinghead_lab.bench.rows import Results, Row, seconds_of, sustained_seconds_of
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.kernels.attention import EXACT_KERNELS, KERNELS, attention, kernel_status
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.quantized.rows import quantize_rows
from talkinghead_lab.weights.quantization import has_fp8

TERA, GIGA = 1e12, 1e9
CHECKED_QUERIES = 512


def linear_shapes(config: DiTConfig) -> dict[tuple[int, int], int]:
    """(in, out) sizes of the linear layers applied to every token of a block → number of such layers.

    Counts query, key, value and output of self-attention, query and output of cross-attention to text and
    image, and the feed-forward network. Keys and values of text, image and audio are computed once a chunk.
    """
    return {(config.dim, config.dim): 6, (config.dim, config.ffn_dim): 1, (config.ffn_dim, config.dim): 1}


def frame_shapes(config: DiTConfig) -> list[tuple[int, int]]:
    """(in, out) of the two audio cross-attention matmuls: tokens by keys, attention weights by values.

    Each latent frame has its own matrices, with the layer's weights folded in, for all heads at once, in
    bf16. Folding the weights is not counted.
    """
    keys = config.num_heads * config.audio_tokens
    return [(config.dim, keys), (keys, config.dim)]


def matmul_name(kind: str, shape: tuple[int, int]) -> str:
    """Row name of a matmul."""
    return f"ceiling: {kind} product {shape[0]} to {shape[1]}"


def frame_matmul_name(shape: tuple[int, int]) -> str:
    """Row name of a matmul whose weights differ by latent frame."""
    return f"ceiling: bf16 product of each frame {shape[0]} to {shape[1]}"


def attention_name(kind: str) -> str:
    """Row name of an attention kernel."""
    return f"attention: {kind}"


def measure_matmuls(size: Size, device: torch.device, results: Results) -> None:
    """Measure bf16 matmuls at the model's shapes, and row-scaled fp8 matmuls where the GPU supports them."""
    for shape in linear_shapes(size.dit):
        x, weight = (_random(device, rows, shape[0]) for rows in (size.grid.tokens, shape[1]))
        works: dict[str, Callable[[], Tensor]] = {"bf16": lambda x=x, weight=weight: x @ weight.t()}  # type: ignore[misc]
        if has_fp8(device):
            works["fp8"] = _fp8_matmul(x, weight)
        for kind, work in works.items():
            _add_matmul(matmul_name(kind, shape), work, shape, size, device, results)
    for shape in frame_shapes(size.dit):
        frames, rows = size.grid.latent_frames, size.grid.tokens // size.grid.latent_frames
        x, weight = _random(device, frames, rows, shape[0]), _random(device, frames, shape[1], shape[0])
        work = partial(torch.bmm, x, weight.mT)
        _add_matmul(frame_matmul_name(shape), work, shape, size, device, results)


def _add_matmul(
    name: str,
    work: Callable[[], Tensor],
    shape: tuple[int, int],
    size: Size,
    device: torch.device,
    results: Results,
) -> None:
    seconds = sustained_seconds_of(work, device)
    rate = 2 * size.grid.tokens * shape[0] * shape[1] / seconds / TERA
    results.add(Row(name, seconds, conditions={"tflops": rate}))


def _fp8_matmul(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    (rows, scale), (weight, weight_scale) = quantize_rows(x, FP8), quantize_rows(weight, FP8)
    return lambda: torch._scaled_mm(
        rows,
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


@torch.inference_mode()
def measure_attention(size: Size, device: torch.device, results: Results) -> None:
    """Measure every available attention kernel, and its error against float32 on the first queries."""
    tokens, heads = size.grid.tokens, size.dit.num_heads
    width = size.dit.dim // heads
    query, key, value = (_random(device, 1, tokens, heads, width) for _ in range(3))
    expected = torch.cat([_exact(query, key, value, head) for head in range(heads)], dim=2)
    for kind in KERNELS:
        if kernel_status(kind, device).passed:
            work = partial(_prepared(kind, device), query, key, value)
            seconds = sustained_seconds_of(work, device)
            out = work()[:, :CHECKED_QUERIES].float()
            error = ((out - expected).norm() / expected.norm()).item()
            rate = 4 * tokens**2 * heads * width / seconds / TERA
            conditions = {"tflops": rate, "relative_error": error, "on": "random normal bf16"}
            results.add(Row(attention_name(kind), seconds, conditions=conditions))


def _exact(query: Tensor, key: Tensor, value: Tensor, head: int) -> Tensor:
    """float32 attention of the first queries of one head."""
    query, key, value = (x[:, :, head : head + 1].float() for x in (query[:, :CHECKED_QUERIES], key, value))
    return attention(query, key, value)


def _prepared(kind: str, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The kernel with its quantisation compiled, as it is inside a compiled block."""
    if kind in EXACT_KERNELS or device.type != "cuda":
        return KERNELS[kind].attend
    return torch.compile(KERNELS[kind].attend, dynamic=False)


def measure_copies(size: Size, device: torch.device, results: Results) -> None:
    """Measure host-to-device copies from page-locked and pageable memory."""
    if device.type != "cuda":
        return
    for kind, pinned in (("page-locked", True), ("pageable", False)):
        source = torch.empty(2**30, dtype=torch.uint8, pin_memory=pinned)
        seconds = seconds_of(lambda source=source: source.to(device, non_blocking=True), device)  # type: ignore[misc]
        results.add(Row(f"ceiling: host to device, {kind}", len(source) / seconds / GIGA, "GB/s"))


def roofline_seconds(
    config: DiTConfig, results: Results, matmuls: str = "bf16", quantized_attention: bool = False
) -> float | None:
    """Lower bound in seconds of one forward pass: its matmuls and self-attention alone.

    None if a part was not measured. Uses the fastest exact attention kernel, or with `quantized_attention`
    the fastest of all. In fp8, one layer stays in bf16: the output of cross-attention to text and image.
    """
    counts = {matmul_name(matmuls, shape): count for shape, count in linear_shapes(config).items()}
    counts |= {frame_matmul_name(shape): 1 for shape in frame_shapes(config)}
    if matmuls != "bf16":
        square = (config.dim, config.dim)
        counts[matmul_name(matmuls, square)] -= 1
        counts[matmul_name("bf16", square)] = 1
    kinds = [kind for kind in KERNELS if quantized_attention or kind in EXACT_KERNELS]
    attending = [seconds for kind in kinds if (seconds := results.seconds(attention_name(kind)))]
    if not attending or any(results.seconds(name) is None for name in counts):
        return None
    block = sum(count * (results.seconds(name) or 0.0) for name, count in counts.items())
    return config.num_layers * (block + min(attending))


def fastest_attention(results: Results, exact: bool, device: torch.device) -> str:
    """The fastest attention kernel measured; if none was, `sdpa` or the first quantised one available."""
    kinds = [
        kind
        for kind, kernel in KERNELS.items()
        if kernel.exact is exact and kernel_status(kind, device).passed
    ]
    measured = {kind: seconds for kind in kinds if (seconds := results.seconds(attention_name(kind)))}
    return min(
        measured, key=lambda kind: measured[kind], default="sdpa" if exact else kinds[0] if kinds else "sdpa"
    )


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)
