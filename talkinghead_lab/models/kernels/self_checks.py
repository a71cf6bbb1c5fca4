"""Compares the optional kernels with PyTorch's own path on small inputs; run by `optional_kernels`.

Every check yields triples: what was compared, its relative error in norms, and the largest error allowed.
Widths are the released ones, so that the compiled kernels are those that the network uses.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor

from talkinghead_lab.foundation.devices import is_out_of_memory
from talkinghead_lab.models.kernels.attention import KERNELS, Rotation, grid_angles, text_image_attention
from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.kernels.optional_kernels import Status
from talkinghead_lab.models.kernels.quantized_attention import scale_for
from talkinghead_lab.models.kernels.two_speakers import region_attention, rotated_attention_weights

Comparison = tuple[str, float, float]
Check = Callable[[torch.device], Iterator[Comparison]]
HEAD_WIDTH, WIDTH, FEED_FORWARD_WIDTH = 128, 5120, 13_824
VAE_WIDTHS = (96, 192, 384)
# No multiples of a tile.
TOKENS, ROWS = 333, 30
DTYPE = torch.bfloat16  # what the network computes in
EPS = 1e-6


def attention_check(name: str, bound: float) -> Check:
    """The check of a self-attention kernel; the second inputs have outliers as trained keys and values do."""

    def check(device: torch.device) -> Iterator[Comparison]:
        for tokens, offset in ((TOKENS, 0), (2 * TOKENS, 4)):
            query, key, value = _normal(device, 3, 1, tokens, 2, HEAD_WIDTH)
            key, value = key + offset * key[:, :1], value + offset * value[:, :1]
            exact = KERNELS["sdpa"].attend(query.float(), key.float(), value.float())
            yield f"{tokens} tokens", _error(KERNELS[name].attend(query, key, value), exact), bound

    return check


def text_image(device: torch.device) -> Iterator[Comparison]:
    """RMS norm of the query, attention to a padded prompt plus attention to a picture."""
    query, key, value = _normal(device, 3, 2, TOKENS, 2, HEAD_WIDTH)
    image = list(_normal(device, 2, 2, 257, 2, HEAD_WIDTH))
    weight = 1 + _normal(device, 2 * HEAD_WIDTH) / 4
    for words in (1, 40, TOKENS):
        text = [torch.cat((x[:, :words], x[:, words - 1 : words].expand(-1, TOKENS - words, -1, -1)), 1)
                for x in (key, value)]  # fmt: skip
        counts = torch.full((2,), words, dtype=torch.int32, device=device)
        normed = F.rms_norm(query.float().flatten(2), weight.shape, weight.float(), EPS).view(query.shape)
        exact = sum(KERNELS["sdpa"].attend(normed, k.float(), v.float()) for k, v in (text, image))
        assert isinstance(exact, Tensor)
        yield (
            f"{words} words",
            _error(text_image_attention(query, weight, EPS, text, image, counts), exact),
            0.01,
        )


def two_speakers(device: torch.device) -> Iterator[Comparison]:
    """Attention to regions, and weights of attention to the audio of two speakers."""
    query, key = _normal(device, 2, 2, TOKENS, 2, HEAD_WIDTH)
    regions = torch.arange(3, device=device)[:, None] == torch.arange(TOKENS - 90, device=device) % 3
    given = query, key[:, : TOKENS - 90], regions.float()
    exact = region_attention(*given)
    yield "regions", _error(region_attention(*given, use_triton=True), exact), 0.002
    frames, count = 9, 64
    audio = _normal(device, 2 * frames, count, 2, HEAD_WIDTH)
    rotation = Rotation.from_angles(grid_angles((1, 1, TOKENS), HEAD_WIDTH), device)
    cosine, sine = (table.expand(2, -1, -1, -1).contiguous() for table in (rotation.cosine, rotation.sine))
    rotated = rotation(query.float()).view(2 * frames, -1, 2, HEAD_WIDTH)
    scores = torch.einsum("fsnd,fknd->fsnk", rotated, audio.float()) / HEAD_WIDTH**0.5
    weights = rotated_attention_weights(query, cosine, sine, audio)
    yield "audio", _error(weights, scores.softmax(dim=-1).flatten(2)), 0.01


def fused_layers(device: torch.device) -> Iterator[Comparison]:
    """Residual and layer norm, RMS norm and rotary positions: in bf16."""
    from talkinghead_lab.models.kernels import triton_rows

    x, update, gate, offset, weight, bias = _rows(device)
    expected = x.float() + (update.float() + offset.float()) * gate
    summed, normed, _ = triton_rows.add_and_norm(x, update, gate, offset, weight, bias, EPS, False)
    yield "sum", _error(summed, expected), 0.01
    yield "layer norm", _error(normed, _layer_norm(expected, weight, bias)), 0.01
    rotation, rotated = _rotated(x, weight)
    out = triton_rows.norm_and_rotate(x, weight[0, 0].to(DTYPE), EPS, *rotation, 1, None, None)[0]
    yield "rotation", _error(out, rotated), 0.01


def fused_fp8_layers(device: torch.device) -> Iterator[Comparison]:
    """The same, and GELU, quantised to fp8; the error is that of fp8, whose relative precision is 2⁻⁴."""
    from talkinghead_lab.models.kernels import triton_rows

    x, update, gate, offset, weight, bias = _rows(device)
    expected = _layer_norm(x.float() + (update.float() + offset.float()) * gate, weight, bias)
    _, normed, scales = triton_rows.add_and_norm(x, update, gate, offset, weight, bias, EPS, True)
    yield "layer norm", _error(normed.float() * scales, expected), 0.05
    wide = _normal(device, ROWS, FEED_FORWARD_WIDTH)
    rows, scales = triton_rows.gelu_and_quantize(wide)
    yield "GELU", _error(rows.float() * scales, F.gelu(wide.float(), approximate="tanh")), 0.05
    centre = update[:, 0].contiguous()
    rows, scales = triton_rows.quantize(x, centre)
    yield "sum", _error(rows.float() * scales, x.float() + centre[:, None].float()), 0.05
    rotation, rotated = _rotated(x, weight)
    rotated = rotated - centre[:, None].float()
    scale = scale_for(rotated.unflatten(-1, (-1, HEAD_WIDTH)).abs().amax(dim=(0, 1, 3)), FP8)
    norm_weight = weight[0, 0].to(DTYPE)
    out = triton_rows.norm_and_rotate(x, norm_weight, EPS, *rotation, 1, 1 / scale, centre)
    out = out[0].float() * scale.repeat_interleave(HEAD_WIDTH)
    yield "rotation", _error(out, rotated), 0.05


def dequantize(device: torch.device) -> Iterator[Comparison]:
    """Every block type of GGUF: the same bits."""
    from talkinghead_lab.models.kernels import triton_dequantize

    for name, block in BLOCK_TYPES.items():
        stored = torch.arange(7 * block.nbytes, device=device).to(torch.uint8).view(7, -1)
        # Some scales of this pattern are NaN or infinity.
        expected = block.dequantize(stored).nan_to_num()
        found = triton_dequantize.dequantize(stored, name, torch.float32).nan_to_num()
        yield name, float(not found.equal(expected)), 0.0


def vae_blocks(device: torch.device) -> Iterator[Comparison]:
    """Bias, norm, activation, window and shortcut of the video autoencoder: in fp16, as it decodes."""
    from talkinghead_lab.models.kernels import triton_frames

    for width in VAE_WIDTHS:
        frame, older, newer, shortcut = _normal(device, 4, 2, 3, TOKENS, width).half()
        bias, gamma = _normal(device, 2, width).half()
        expected = F.silu(F.rms_norm((frame.float() + bias.float()), [width], gamma.float(), EPS))
        activated, window = triton_frames.activated_window(frame, bias, gamma, EPS, older, newer)
        yield f"activation of {width} channels", _error(activated, expected), 0.001
        frames = torch.cat([older.float(), newer.float(), expected], dim=-1)
        yield f"window of {width} channels", _error(window, frames), 0.001
        expected = frame.float() + bias.float() + shortcut.float()
        yield f"sum of {width} channels", _error(triton_frames.add_(frame, bias, shortcut), expected), 0.001


CHECKS: dict[str, Check] = {
    "flash3": attention_check("flash3", 0.01),
    # The errors that `quantized_attention` states, and a quarter more for other inputs.
    "flash3_fp8": attention_check("flash3_fp8", 0.075),
    "triton_hopper": attention_check("triton_hopper", 0.05),
    "triton": attention_check("triton", 0.03),
    "sage": attention_check("sage", 0.075),
    "text_image": text_image,
    "two_speakers": two_speakers,
    "fused_layers": fused_layers,
    "fused_fp8_layers": fused_fp8_layers,
    "dequantize": dequantize,
    "vae_blocks": vae_blocks,
}


def run_check(check: Check, device: torch.device) -> Status:
    """The status of one kernel."""
    largest = 0.0
    try:
        for compared, error, bound in check(device):
            if not error <= bound:  # NaN is not
                return Status("failed", f"{compared}: relative error {error:.2g}, allowed {bound:g}")
            largest = max(largest, error)
    except Exception as error:  # compilers of kernels raise many kinds
        text = " ".join(str(error).split())
        return Status("failed", f"{type(error).__name__}: {text:.300}", lasting=not is_out_of_memory(error))
    return Status("passed", f"relative error {largest:.2g}")


@torch.inference_mode()
def main(arguments: list[str], checks: Mapping[str, Check] = CHECKS) -> None:
    """Check kernels one after the other.

    Args:
        arguments: file descriptor to report to, device, names of kernels. One report says that the device
            works, then follows the status of each kernel.
        checks: by name.
    """
    descriptor, name, *kernels = arguments
    device = torch.device(name)
    with Connection(int(descriptor), readable=False) as reports:
        torch.ones(1, device=device).item()
        reports.send("ready")
        for kernel in kernels:
            reports.send(run_check(checks[kernel], device))


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, DTYPE)


def _error(found: Tensor, expected: Tensor) -> float:
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())


def _rows(device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, an update, its gate and offset, and weight and bias of a norm, all of the released width."""
    x, update = _normal(device, 2, 2, ROWS, WIDTH)
    gate, weight, bias = _normal(device, 3, 2, 1, WIDTH).float()
    return x, update, gate, _normal(device, WIDTH), 1 + weight / 4, bias


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * weight + bias


def _rotated(x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Cosine and sine of the positions of tokens [B, L, D], and the tokens normed and rotated by them."""
    rotation = Rotation.from_angles(grid_angles((1, 1, x.shape[1]), HEAD_WIDTH), x.device)
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=EPS) * weight[0, 0].to(DTYPE).float()
    rotated = rotation(normed.unflatten(-1, (-1, HEAD_WIDTH))).flatten(2)
    return (rotation.cosine, rotation.sine), rotated


if __name__ == "__main__":
    main(sys.argv[1:])
