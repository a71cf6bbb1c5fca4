"""Parts that are missing or do not fit; nothing of such a file is applied."""

import numpy as np
import pytest
import torch

from talkinghead_lab.errors import CheckpointError

FFN, CONV, SQUARE = "blocks.0.ffn.0", "patch_embedding", "blocks.0.self_attn.q"
GOOD = {"blocks.1.ffn.2.diff_b": torch.ones(24)}


def ones(layer: str, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    spelled = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    return {f"{layer}.{spelled.get(part, part)}": torch.ones(shape) for part, shape in shapes.items()}


MISFITS = {
    "only down": (ones(FFN, down=(3, 24)), "half of a low-rank pair in blocks.0.ffn.0"),
    "only up": (ones(FFN, up=(40, 3)), "half of a low-rank pair"),
    "only a core": (ones(CONV, mid=(3, 3, 1, 2, 2)), "half of a low-rank pair"),
    "only alpha": (ones(FFN, alpha=()), r"half of a low-rank pair.*\['alpha'\]"),
    "only norms": (ones(FFN, dora_scale=(40, 1)), "half of a low-rank pair"),
    "half a Hadamard product": (ones(FFN, hada_w1_a=(40, 3), hada_w1_b=(3, 24)), "half"),
    "one core": (
        ones(CONV, hada_t1=(2, 2, 1, 2, 2), hada_w1_a=(2, 24), hada_w1_b=(2, 36))
        | ones(CONV, hada_w2_a=(2, 24), hada_w2_b=(2, 36)),
        "half",
    ),
    "half a Kronecker product": (ones(FFN, lokr_w1=(4, 2)), "half of a Kronecker product"),
    "a third of one": (ones(FFN, lokr_w1=(4, 2), lokr_w2_a=(10, 2)), "half of a Kronecker product"),
    "w2 in two ways": (
        ones(FFN, lokr_w1=(4, 2), lokr_w2=(10, 12), lokr_w2_a=(10, 2), lokr_w2_b=(2, 12)),
        "half of a Kronecker product",
    ),
    "two kinds": (ones(FFN, down=(3, 24), up=(40, 3), lokr_w1=(4, 2), lokr_w2=(10, 12)), "half"),
    "pair and full": (ones(FFN, down=(3, 24), up=(40, 3), diff=(40, 24)), "two updates of one weight"),
    "two ranks": (ones(FFN, down=(3, 24), up=(40, 2)), "two different ranks.*3 and 2"),
    "transposed": (ones(FFN, down=(3, 40), up=(24, 3)), r"down of shape \(3, 40\); allowed: shape \(3, 24\)"),
    "transposed factors": (ones(FFN, down=(24, 3), up=(3, 40)), "ranks"),
    "transposed full": (ones(FFN, diff=(24, 40)), r"diff of shape \(24, 40\); allowed: shape \(40, 24\)"),
    "transposed Kronecker": (ones(FFN, lokr_w1=(2, 4), lokr_w2=(12, 10)), "does not fit"),
    "Kronecker of another size": (ones(FFN, lokr_w1=(3, 2), lokr_w2=(10, 12)), "does not fit"),
    "transposed Hadamard": (
        ones(FFN, hada_w1_a=(24, 3), hada_w1_b=(3, 40), hada_w2_a=(24, 3), hada_w2_b=(3, 40)),
        "does not fit",
    ),
    "wider layer": (ones(FFN, down=(3, 48), up=(40, 3)), "does not fit"),
    "text-to-video": (ones(CONV, diff=(24, 16, 1, 2, 2)), "patch_embedding.*image-to-video"),
    "other kernel": (ones(CONV, down=(3, 36, 2, 2, 1), up=(24, 3, 1, 1, 1)), "does not fit"),
    "core of other kernel": (
        ones(CONV, mid=(3, 3, 2, 1, 2), down=(3, 36, 1, 1, 1), up=(24, 3, 1, 1, 1)),
        "does not fit",
    ),
    "no matrix": (ones(FFN, down=(3,), up=(40, 3)), "does not fit"),
    "a number": (ones(FFN, lokr_w1=(), lokr_w2=()), "does not fit"),
    "pair for a norm": (ones("blocks.0.norm3", down=(1, 24), up=(24, 1)), "does not fit"),
    "norms of another size": (ones(SQUARE, down=(3, 24), up=(24, 3), dora_scale=(24, 24)), "DoRA norms"),
    "norms of other columns": (ones(FFN, down=(3, 24), up=(40, 3), dora_scale=(24,)), "DoRA norms"),
    "norms twice": (
        ones(FFN, down=(3, 24), up=(40, 3), dora_scale=(40, 1), lora_magnitude_vector=(40,)),
        r"DoRA norms of shape \[\(40, 1\), \(40,\)\]",
    ),
    "bias of a norm without one": (ones("blocks.0.self_attn.norm_q", diff_b=(24,)), "updates a bias"),
    "bias of a modulation": (ones("head.modulation", diff_b=(24,)), "updates a bias"),
    "longer bias": (ones(FFN, diff_b=(41,)), "diff_b"),
    "two biases": (
        ones(FFN, down=(3, 24), up=(40, 3), diff_b=(40,)) | {f"{FFN}.lora_B.bias": torch.ones(40)},
        "a bias",
    ),
    "alpha of zero": (
        ones(FFN, down=(3, 24), up=(40, 3)) | {f"{FFN}.alpha": torch.tensor(0.0)},
        "usable alpha",
    ),
    "two alphas": (ones(FFN, down=(3, 24), up=(40, 3), alpha=(2,)), "usable alpha"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_part_that_is_missing_or_does_not_fit(model, merge, case):
    tensors, message = MISFITS[case]
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=message):
        merge(GOOD | tensors)
    assert all(map(torch.equal, model.parameters(), before))


def test_dimensions_of_size_one_may_follow_or_be_left_out(merge):
    tensors = ones(FFN, down=(3, 24, 1, 1), up=(40, 3, 1, 1)) | ones("head", diff_m=(2, 24))
    changes = merge(tensors)
    np.testing.assert_allclose(changes[f"{FFN}.weight"], 3.0, atol=1e-6)
    np.testing.assert_allclose(changes["head.modulation"], 1.0, atol=1e-6)
