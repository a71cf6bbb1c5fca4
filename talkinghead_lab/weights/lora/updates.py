"""The kinds of updates that a LoRA file can hold, as functions of their factors.

A kind is recognised by its parts, and the shapes of the parts must fit the weight exactly: a product of the
right number of values but another shape is an error. Symbols: weight [out, in, *kernel]; a linear layer has
no kernel. Sources: LoRA (arXiv 2106.09685), LoCon, LoHa and LoKr (LyCORIS, arXiv 2309.14859).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.weights.lora.keys import LayerUpdate
from talkinghead_lab.weights.lora.reading import Scaling

Shape = tuple[int, ...]
Compute = Callable[..., Tensor]
LOKR = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
HADA_CORES = {"hada_t1", "hada_t2"}


@dataclass(frozen=True)
class Delta:
    """A change that is added to a weight: `compute` of the factors, the first of them times `scale`.

    `is_pair`: they are a low-rank pair, up and down.
    """

    compute: Compute
    factors: Sequence[Tensor]
    scale: float = 1.0
    is_pair: bool = False

    def on(self, device: torch.device, shape: Sequence[int]) -> Tensor:
        """The change in float32, computed on `device`."""
        first, *others = (factor.to(device).float() for factor in self.factors)
        return self.compute(self.scale * first, *others).view(shape)


def full(update: LayerUpdate, part: str, shape: Shape, scale: float = 1.0) -> Delta:
    """A change of every value; dimensions of size 1 may be missing.

    Raises:
        CheckpointError: it does not fit `shape`.
    """
    change = update.parts[part]
    if [n for n in change.shape if n > 1] != [n for n in shape if n > 1]:
        raise _misfit(update, part, change, shape)
    return Delta(lambda values: values, (change,), scale)


def product(update: LayerUpdate, shape: Shape, scaling: Scaling) -> tuple[Delta, float] | None:
    """The change of a weight that is a product of factors, and its scale; None if there is none.

    Raises:
        CheckpointError: factors are missing, left over, or do not fit each other or `shape`.
    """
    parts = update.parts.keys() - {"alpha", "dora_scale", "magnitude", "up_bias", "diff", "diff_b"}
    if not parts:
        return None
    if len(shape) < 2 or any(update.parts[part].dim() < 2 for part in parts):
        shapes = {part: tuple(update.parts[part].shape) for part in sorted(parts)}
        raise update.error("does not fit", f"{shapes}", f"factors of a change of shape {shape}")
    kind: Callable[[LayerUpdate, Shape], tuple[Compute, list[str], int | None]]
    if {"down", "up"} <= parts <= {"down", "up", "mid"}:
        kind = _low_rank
    elif parts in (HADA, HADA | HADA_CORES):
        kind = _hadamard
    elif parts <= LOKR:
        kind = _kronecker
    else:
        raise update.error("holds only half of a low-rank pair", sorted(parts))
    compute, names, rank = kind(update, shape)
    scale = _scale(update, rank, scaling)
    factors = [update.parts[name] for name in names]
    return Delta(compute, factors, scale, is_pair=names == ["up", "down"]), scale


def _scale(update: LayerUpdate, rank: int | None, scaling: Scaling) -> float:
    """By alpha and rank; 1 without an alpha, and for a product that has no rank."""
    stored = update.parts.get("alpha")
    if stored is not None and (stored.numel() != 1 or not stored.item()):
        raise update.error(
            "has no usable alpha", f"{stored.flatten()[:3].tolist()}", "one number other than 0"
        )
    if rank is None:
        return 1.0
    configured = scaling.of(update.written, rank)
    if stored is None:
        return configured
    scale = stored.item() / rank
    if scaling.alpha is not None and not math.isclose(scale, configured, rel_tol=1e-3):
        raise update.error("states two scales", f"{scale:g} by `alpha` and {configured:g} in the header")
    return scale


def _low_rank(update: LayerUpdate, shape: Shape) -> tuple[Compute, list[str], int]:
    """Pair up [out, r] @ down [r, in · kernel]; with a core `mid` [r, r, *kernel], down is [r, in]."""
    out, inputs, *kernel = shape
    up, down = update.parts["up"], update.parts["down"]
    up_rank, rank = up.shape[1], down.shape[0]
    if "mid" in update.parts:
        _expect(update, "mid", (up_rank, rank, *kernel))
        _expect(update, "down", (rank, inputs))
    else:
        if up_rank != rank:
            raise update.error("has a pair of two different ranks", f"{rank} and {up_rank}")
        _expect(update, "down", (rank, inputs, *kernel), (rank, math.prod(shape[1:])))
    _expect(update, "up", (out, up_rank))
    if "mid" in update.parts:
        return (lambda u, m, d: _tucker(m, u.flatten(1).mT, d.flatten(1))), ["up", "mid", "down"], rank
    return (lambda u, d: u.flatten(1) @ d.flatten(1)), ["up", "down"], rank


def _hadamard(update: LayerUpdate, shape: Shape) -> tuple[Compute, list[str], int]:
    """(w1_a @ w1_b) ∘ (w2_a @ w2_b); with cores t1 and t2, each factor is a Tucker product."""
    out, inputs, *kernel = shape
    rank = update.parts["hada_w1_b"].shape[0]
    names = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
    if "hada_t1" in update.parts:
        for factor in "12":
            _expect(update, f"hada_t{factor}", (rank, rank, *kernel))
            _expect(update, f"hada_w{factor}_a", (rank, out))
            _expect(update, f"hada_w{factor}_b", (rank, inputs))
        tucker = lambda a, b, c, d, t1, t2: _tucker(t1, a, b) * _tucker(t2, c, d)  # noqa: E731
        return tucker, [*names, "hada_t1", "hada_t2"], rank
    for factor in "12":
        _expect(update, f"hada_w{factor}_a", (out, rank))
        _expect(update, f"hada_w{factor}_b", (rank, math.prod(shape[1:])))
    return (lambda a, b, c, d: (a @ b) * (c @ d)), names, rank


def _kronecker(update: LayerUpdate, shape: Shape) -> tuple[Compute, list[str], int | None]:
    """w1 [a, b] ⊗ w2 [c, d, *kernel] with a · c = out and b · d = in; either may be a product of two."""
    parts, (out, inputs, *kernel) = update.parts, shape
    first = ["lokr_w1"] if "lokr_w1" in parts else ["lokr_w1_a", "lokr_w1_b"]
    second = ["lokr_w2"] if "lokr_w2" in parts else ["lokr_w2_a", "lokr_w2_b"]
    if "lokr_t2" in parts:
        second.append("lokr_t2")
    present = parts.keys() & LOKR
    if set(first + second) != present or second == ["lokr_w2", "lokr_t2"]:
        raise update.error("holds only half of a Kronecker product", sorted(present))
    ranks = {parts[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts}
    rows, columns = parts[first[0]].shape[0], parts[first[-1]].shape[-1]
    rest = (out // rows, inputs // columns)
    if len(ranks) > 1 or rest[0] * rows != out or rest[1] * columns != inputs:
        raise _misfit(update, first[0], parts[first[0]], shape)
    (rank,) = ranks or (None,)
    if rank is not None:
        _expect_lokr_factors(update, rank, rows, columns, rest, kernel)
    if "lokr_w1" in parts:
        _expect(update, "lokr_w1", (rows, columns))
    if "lokr_w2" in parts:
        _expect(update, "lokr_w2", (*rest, *kernel), (rest[0], rest[1] * math.prod(kernel)))

    def compute(*factors: Tensor) -> Tensor:
        w1, w2 = factors[: len(first)], factors[len(first) :]
        right = _tucker(w2[2], w2[0], w2[1]) if len(w2) == 3 else _chain(w2)
        return torch.kron(_chain(w1), right.flatten(1))

    return compute, first + second, rank


def _expect_lokr_factors(
    update: LayerUpdate, rank: int, rows: int, columns: int, rest: Shape, kernel: Sequence[int]
) -> None:
    if "lokr_w1_a" in update.parts:
        _expect(update, "lokr_w1_a", (rows, rank))
        _expect(update, "lokr_w1_b", (rank, columns))
    if "lokr_t2" in update.parts:
        _expect(update, "lokr_t2", (rank, rank, *kernel))
        _expect(update, "lokr_w2_a", (rank, rest[0]))
        _expect(update, "lokr_w2_b", (rank, rest[1]))
    elif "lokr_w2_a" in update.parts:
        _expect(update, "lokr_w2_a", (rest[0], rank))
        _expect(update, "lokr_w2_b", (rank, rest[1] * math.prod(kernel)))


def _chain(factors: Sequence[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Core [r, s, *kernel], a [r, out], b [s, in] → [out, in, *kernel]."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b)


def _expect(update: LayerUpdate, part: str, *shapes: Shape) -> None:
    """Raise unless a part has one of the shapes, after which dimensions of size 1 may follow."""
    found = tuple(update.parts[part].shape)
    if not any(found[: len(s)] == s and all(n == 1 for n in found[len(s) :]) for s in shapes):
        raise _misfit(update, part, update.parts[part], shapes[0])


def _misfit(update: LayerUpdate, part: str, found: Tensor, shape: Sequence[int]) -> Exception:
    return update.error("does not fit", f"{part} of shape {tuple(found.shape)}", f"shape {tuple(shape)}")
