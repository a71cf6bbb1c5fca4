"""LoRA formats; files that do not fit are errors."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.lora import merge_lora


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"ffn": nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))})])
        self.patch = nn.Conv3d(2, 4, (1, 2, 2))
        self.modulation = nn.Parameter(torch.zeros(1, 6))


@pytest.fixture
def merge(tmp_path):
    def merged(tensors: dict, strength: float = 1.0) -> Tiny:
        path = tmp_path / "lora.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        model = Tiny()
        merge_lora(model, path, strength)
        return model

    return merged


def change(model: Tiny, name: str) -> torch.Tensor:
    return (model.get_parameter(name) - Tiny().get_parameter(name)).detach()


DOWN, UP = torch.randn(3, 6), torch.randn(8, 3)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer.", "base_model.model."])
def test_all_key_formats(merge, prefix, down, up):
    model = merge({f"{prefix}blocks.0.ffn.0.{down}": DOWN, f"{prefix}blocks.0.ffn.0.{up}": UP}, 0.5)
    torch.testing.assert_close(change(model, "blocks.0.ffn.0.weight"), 0.5 * UP @ DOWN)


def test_names_with_underscores_instead_of_dots(merge):
    model = merge(
        {"lora_unet_blocks_0_ffn_0.lora_down.weight": DOWN, "lora_unet_blocks_0_ffn_0.lora_up.weight": UP}
    )
    torch.testing.assert_close(change(model, "blocks.0.ffn.0.weight"), UP @ DOWN)


def test_alpha_is_divided_by_the_rank(merge):
    layer = "blocks.0.ffn.0"
    model = merge(
        {f"{layer}.lora_A.weight": DOWN, f"{layer}.lora_B.weight": UP, f"{layer}.alpha": torch.tensor(6.0)}
    )
    torch.testing.assert_close(change(model, f"{layer}.weight"), 2.0 * UP @ DOWN)


def test_full_rank_updates_of_weights_biases_and_bare_parameters(merge):
    weight, bias, bare = torch.randn(6, 8), torch.randn(6), torch.randn(1, 6)
    model = merge(
        {"blocks.0.ffn.1.diff": weight, "blocks.0.ffn.1.diff_b": bias, "modulation.diff": bare}, 2.0
    )
    torch.testing.assert_close(change(model, "blocks.0.ffn.1.weight"), 2 * weight)
    torch.testing.assert_close(change(model, "blocks.0.ffn.1.bias"), 2 * bias)
    torch.testing.assert_close(change(model, "modulation"), 2 * bare)


def test_convolution(merge):
    down, up = torch.randn(3, 2, 1, 2, 2), torch.randn(4, 3, 1, 1, 1)
    model = merge({"patch.lora_down.weight": down, "patch.lora_up.weight": up})
    torch.testing.assert_close(change(model, "patch.weight").flatten(1), up.flatten(1) @ down.flatten(1))


def test_updates_of_several_merges_add_up(tmp_path):
    save_file({"blocks.0.ffn.1.diff_b": torch.ones(6)}, tmp_path / "a.safetensors")
    model = Tiny()
    assert merge_lora(model, tmp_path / "a.safetensors", 1.0) == 1
    assert merge_lora(model, tmp_path / "a.safetensors", 0.25) == 1
    torch.testing.assert_close(change(model, "blocks.0.ffn.1.bias"), torch.full((6,), 1.25))


def test_unmatched_keys_are_logged(merge, caplog):
    with caplog.at_level(logging.WARNING):
        merge({"blocks.0.ffn.1.diff_b": torch.ones(6), "blocks.9.ffn.1.diff_b": torch.ones(6)})
    assert "blocks.9.ffn.1.diff_b" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other.0.diff": torch.ones(2)}, "no key of the LoRA matches"),
        ({"blocks.0.ffn.0.lora_A.weight": DOWN}, "half of a low-rank pair"),
        ({"blocks.0.ffn.0.diff": torch.ones(5, 5)}, "does not fit"),
        (
            {"blocks.0.ffn.0.lora_A.weight": DOWN, "blocks.0.ffn.0.lora_B.weight": torch.ones(8, 2)},
            "two different ranks",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(merge, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        merge(tensors)


def test_an_unreadable_file_is_an_error(tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_lora(Tiny(), tmp_path / "lora.safetensors", 1.0)
