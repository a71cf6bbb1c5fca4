"""Files that cannot be read, and where the scale of an update stands."""

import json

import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.lora import merge_lora

LAYER, NAME = "blocks.0.self_attn.q", "transformer.blocks.0.attn1.to_q"
DOWN, UP = torch.arange(96.0).view(4, 24) / 96, torch.arange(96.0).view(24, 4) / 96
PAIR = {f"{NAME}.lora_A.weight": DOWN, f"{NAME}.lora_B.weight": UP}


def header(**fields) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in fields.items()})}


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        (None, 1.0),
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": False, "alpha_pattern": {}}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"blocks.0.attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}, "use_rslora": True}, 1.0),
        ({"lora_alpha": 8, "alpha_pattern": {"blocks.1.attn1.to_q": 2, "n1.to_q": 2}}, 2.0),
    ],
)
def test_scales_in_the_header_of_diffusers(merge, fields, scale):
    changes = merge(PAIR, header=None if fields is None else header(**fields))
    torch.testing.assert_close(changes[f"{LAYER}.weight"], scale * UP @ DOWN)


def test_a_stored_alpha_that_agrees_with_the_header(merge):
    changes = merge(PAIR | {f"{NAME}.alpha": torch.tensor(8)}, header=header(lora_alpha=8))
    torch.testing.assert_close(changes[f"{LAYER}.weight"], 2.0 * UP @ DOWN)


@pytest.mark.parametrize(
    ("tensors", "text", "message"),
    [
        (PAIR | {f"{NAME}.alpha": torch.tensor(8.0)}, header(lora_alpha=4), "two scales.*2 by `alpha` and 1"),
        (PAIR, header(lora_alpha="8"), "lora_alpha '8'"),
        (PAIR, header(lora_alpha=8, use_rslora="yes"), "use_rslora 'yes'"),
        (PAIR, header(alpha_pattern={"(a+)+": 1}), "alpha_pattern"),
        (PAIR, header(alpha_pattern={"a": float("nan")}), "alpha_pattern"),
        (PAIR, {"lora_adapter_metadata": "{"}, "damaged"),
        (PAIR, {"lora_adapter_metadata": "[1]"}, "damaged"),
    ],
)
def test_an_unusable_header(merge, tensors, text, message):
    with pytest.raises(CheckpointError, match=message):
        merge(tensors, header=text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4, "lora_alpha": 8}, "only in adapter_config.json.*rank 4, lora_alpha 8.*`scale` to 2 times"),
        ({"r": 4, "lora_alpha": 4, "use_rslora": True}, "`scale` to 2 times"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"x": 8}}, "only in adapter_config.json"),
        ({"lora_alpha": 4}, "only in adapter_config.json"),
    ],
)
def test_a_scale_that_stands_in_another_file(model, write, tmp_path, config, message):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        merge_lora(model, write(PAIR, name="adapter_model"), 1.0)
    assert merge_lora(model, write(PAIR, name="renamed"), 1.0) == 1


def test_a_configuration_that_scales_by_one(model, write, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "rank_pattern": {}}))
    assert merge_lora(model, write(PAIR, name="adapter_model"), 1.0) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            f"{NAME}.alpha",
            torch.tensor(float("nan")),
            r"`\S+alpha` of the LoRA .*lora\.safetensors holds NaN",
        ),
        (f"{NAME}.alpha", torch.tensor(float("inf")), "holds NaN or infinity"),
        (f"{NAME}.lora_A.weight", torch.full((4, 24), float("inf")), "lora_A.weight.*holds NaN or infinity"),
        (
            f"{NAME}.lora_A.weight",
            torch.full((4, 24), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn),
            "NaN",
        ),
        (f"{NAME}.alpha", torch.tensor(1 + 1j), r"`\S+alpha` of the LoRA .*received torch.complex64"),
        (f"{NAME}.alpha", torch.tensor(True), "received torch.bool"),
        (f"{NAME}.lora_B.weight", torch.full((24, 4), 1e300, dtype=torch.float64), "NaN or infinity"),
        (
            f"{NAME}.lora_B.weight",
            torch.ones(24, 4, dtype=torch.int32),
            "received torch.int32; allowed: torch.float32",
        ),
    ],
)
def test_values_that_are_no_numbers(merge, key, value, message):
    with pytest.raises(CheckpointError, match=message):
        merge(PAIR | {key: value})


def test_an_unreadable_file(model, tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="LoRA cannot be read"):
        merge_lora(model, tmp_path / "lora.safetensors", 1.0)


def test_a_pickled_file_has_no_header(model, tmp_path):
    torch.save(PAIR, tmp_path / "lora.pt")
    assert merge_lora(model, tmp_path / "lora.pt", 1.0) == 1
