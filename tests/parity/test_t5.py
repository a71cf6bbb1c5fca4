"""The text encoder against the reference."""

import torch

from talkinghead_lab.models.text_encoder import TextEncoder, TextEncoderConfig, from_released
from tests.parity import golden

OUTPUTS, CASE = golden.load("t5")


def config() -> TextEncoderConfig:
    return TextEncoderConfig.from_tensors({name: tuple(shape) for name, shape in CASE["params"].items()}, {})


def test_sizes_are_read_off_the_tensors():
    sizes, expected = config(), CASE["config"]
    assert sizes.vocab_size == expected["vocab"]
    assert sizes.dim == expected["dim"]
    assert sizes.num_heads * sizes.head_dim == expected["dim_attn"]
    assert sizes.num_heads == expected["num_heads"]
    assert sizes.ffn_dim == expected["dim_ffn"]
    assert sizes.num_layers == expected["num_layers"]
    assert sizes.num_buckets == expected["num_buckets"]


@torch.inference_mode()
def test_hidden_states():
    model = TextEncoder(config()).eval()
    model.load_state_dict(from_released(golden.parameters("t5", CASE["params"]), config()))
    for row, hidden in enumerate(model(OUTPUTS["ids"], OUTPUTS["mask"])):
        golden.compare(f"t5 hidden{row}", hidden, OUTPUTS[f"hidden{row}"], 1e-4)
