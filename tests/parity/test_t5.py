"""The text encoder against the reference."""

import pytest
import torch

from talkinghead_lab.models.encoders.text import TextEncoder
from talkinghead_lab.weights import checkpoints, locating
from tests.parity import golden

OUTPUTS, CASE = golden.load("t5")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.save(golden.parameters("t5", CASE["params"]), folder / f"{locating.TEXT_ENCODER}.pth")
    files = locating.CheckpointFiles(folder, folder, folder / "infinitetalk.safetensors")
    return checkpoints.load_text_encoder(files, torch.float32, "cpu")


def test_sizes_are_read_from_the_tensors(model: TextEncoder):
    sizes, expected = model.config, CASE["config"]
    assert sizes.vocab_size == expected["vocab"]
    assert sizes.dim == expected["dim"]
    assert sizes.num_heads * sizes.head_dim == expected["dim_attn"]
    assert sizes.num_heads == expected["num_heads"]
    assert sizes.ffn_dim == expected["dim_ffn"]
    assert sizes.num_layers == expected["num_layers"]
    assert sizes.num_buckets == expected["num_buckets"]


@torch.inference_mode()
def test_hidden_states(model: TextEncoder):
    rows = model(OUTPUTS["ids"], OUTPUTS["mask"])
    assert len(rows) == len(OUTPUTS["ids"])
    for number, hidden in enumerate(rows):
        golden.compare(f"t5 hidden{number}", hidden, OUTPUTS[f"hidden{number}"], 1e-4)
