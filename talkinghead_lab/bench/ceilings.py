"""What the machine can do at most at the transformer's sizes: products, attention, copies."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from talkinghead_lab.bench.rows import Results, Row, seconds_of, sustained_seconds_of
from talkinghead_lab.bench.sizes import Size
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.quantized_linear import quantize_rows
from talkinghead_lab.models.kernels.attention import EXACT_KERNELS, KERNELS, attention
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.weights.quantization import has_fp8

TERA, GIGA = 1e12, 1e9
CHECKED_QUERIES = 512


def linear_shapes(config: DiTConfig) -> dict[tuple[int, int], int]:
    """(in, out) of the linear layers that every token of a block goes through → how many there are.

    Queries, keys, values and output of self-attention; query and output of attention to text and picture; the
    feed-forward. Keys and values of text, picture and recording are computed once a chunk.
    """
    return {(config.dim, config.dim): 6, (config.dim, config.ffn_dim): 1, (config.ffn_dim, config.dim): 1}


def frame_shapes(config: DiTConfig) -> list[tuple[int, int]]:
    """(in, out) of attention to the recording: tokens of a frame by its keys, weights by its values.

    Both with the layer's weights folded in, for all heads at once, in bf16. The folding is not counted.
    """
    keys = config.num_heads * config.audio_tokens
    return [(config.dim, keys), (keys, config.dim)]


def product_name(kind: str, shape: tuple[int, int]) -> str:
    """The row of a matrix product."""
    return f"ceiling: {kind} product {shape[0]} to {shape[1]}"


def frame_name(shape: tuple[int, int]) -> str:
    """The row of a matrix product that has other weights for each latent frame."""
    return f"ceiling: bf16 product of each frame {shape[0]} to {shape[1]}"


def attention_name(kind: str) -> str:
    """The row of an attention kernel."""
    return f"attention: {kind}"


def measure_products(size: Size, device: torch.device, results: Results) -> None:
    """bf16 products at the model's shapes, and fp8 ones with a scale a row where the GPU has them."""
    for shape in linear_shapes(size.dit):
        x, weight = (_random(device, rows, shape[0]) for rows in (size.grid.tokens, shape[1]))
        works: dict[str, Callable[[], Tensor]] = {"bf16": lambda x=x, weight=weight: x @ weight.t()}  # type: ignore[misc]
        if has_fp8(device):
            works["fp8"] = _fp8_product(x, weight)
        for kind, work in works.items():
            _add_product(product_name(kind, shape), work, shape, size, device, results)
    for shape in frame_shapes(size.dit):
        frames, rows = size.grid.latent_frames, size.grid.tokens // size.grid.latent_frames
        x, weight = _random(device, frames, rows, shape[0]), _random(device, frames, shape[1], shape[0])
        work = partial(torch.bmm, x, weight.mT)
        _add_product(frame_name(shape), work, shape, size, device, results)


def _add_product(
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


def _fp8_product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
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
    """Every kernel that runs here, with its error against float32 on some of the queries."""
    tokens, heads = size.grid.tokens, size.dit.num_heads
    width = size.dit.dim // heads
    query, key, value = (_random(device, 1, tokens, heads, width) for _ in range(3))
    expected = torch.cat([_exact(query, key, value, head) for head in range(heads)], dim=2)
    for kind, kernel in KERNELS.items():
        if kernel.runs_on(device):
            work = partial(_prepared(kind, device), query, key, value)
            seconds = sustained_seconds_of(work, device)
            out = work()[:, :CHECKED_QUERIES].float()
            error = ((out - expected).norm() / expected.norm()).item()
            rate = 4 * tokens**2 * heads * width / seconds / TERA
            conditions = {"tflops": rate, "relative_error": error, "on": "random normal bf16"}
            results.add(Row(attention_name(kind), seconds, conditions=conditions))


def _exact(query: Tensor, key: Tensor, value: Tensor, head: int) -> Tensor:
    """Attention of the first queries of one head, float32."""
    query, key, value = (x[:, :, head : head + 1].float() for x in (query[:, :CHECKED_QUERIES], key, value))
    return attention(query, key, value)


def _prepared(kind: str, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A kernel with the rounding around it compiled, as it is inside a compiled block."""
    if kind in EXACT_KERNELS or device.type != "cuda":
        return KERNELS[kind].attend
    return torch.compile(KERNELS[kind].attend, dynamic=False)


def measure_copies(size: Size, device: torch.device, results: Results) -> None:
    """Host to device, page-locked and not."""
    if device.type != "cuda":
        return
    for kind, pinned in (("page-locked", True), ("pageable", False)):
        source = torch.empty(2**30, dtype=torch.uint8, pin_memory=pinned)
        seconds = seconds_of(lambda source=source: source.to(device, non_blocking=True), device)  # type: ignore[misc]
        results.add(Row(f"ceiling: host to device, {kind}", len(source) / seconds / GIGA, "GB/s"))


def forward_floor(
    config: DiTConfig, results: Results, products: str = "bf16", rounded_attention: bool = False
) -> float | None:
    """Seconds of one forward if nothing but its products and self-attention took time.

    None where a ceiling was not measured. The fastest kernel of attention counts: of the exact ones, unless
    `rounded_attention`. In fp8 one layer, the output of attention to text and picture, stays in bf16.
    """
    counts = {product_name(products, shape): count for shape, count in linear_shapes(config).items()}
    counts |= {frame_name(shape): 1 for shape in frame_shapes(config)}
    if products != "bf16":
        square = (config.dim, config.dim)
        counts[product_name(products, square)] -= 1
        counts[product_name("bf16", square)] = 1
    kinds = [kind for kind in KERNELS if rounded_attention or kind in EXACT_KERNELS]
    attending = [seconds for kind in kinds if (seconds := results.seconds(attention_name(kind)))]
    if not attending or any(results.seconds(name) is None for name in counts):
        return None
    block = sum(count * (results.seconds(name) or 0.0) for name, count in counts.items())
    return config.num_layers * (block + min(attending))


def best_kind(results: Results, exact: bool, device: torch.device) -> str:
    """The fastest kernel of attention that was measured; where none was, PyTorch's own choice."""
    kinds = [kind for kind in KERNELS if (kind in EXACT_KERNELS) is exact and KERNELS[kind].runs_on(device)]
    measured = {kind: seconds for kind in kinds if (seconds := results.seconds(attention_name(kind)))}
    return min(
        measured, key=lambda kind: measured[kind], default="sdpa" if exact else kinds[0] if kinds else "sdpa"
    )


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)
