"""A tiny transformer with the layers of the released one, and LoRA files for it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.training.networks import embedded_configs
from talkinghead_lab.weights.lora import merge_lora

SMALL = {
    "dim": 24,
    "ffn_dim": 40,
    "num_heads": 2,
    "num_layers": 2,
    "in_dim": 36,
    "out_dim": 16,
    "image_dim": 20,
    "audio_features": 8,
    "audio_hidden": 12,
    "audio_dim": 10,
}


@pytest.fixture
def model() -> DiT:
    """Weights of float32, seeded, none of them zero."""
    dit = DiT(replace(embedded_configs().dit, **SMALL)).requires_grad_(False)
    torch.manual_seed(0)
    for parameter in dit.parameters():
        parameter.normal_(std=0.3)
    return dit


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write tensors and the header's text."""

    def written(
        tensors: Mapping[str, Tensor], header: dict[str, str] | None = None, name: str = "lora"
    ) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.clone() for key, value in tensors.items()}, path, header)
        return path

    return written


@pytest.fixture
def merge(model, write) -> Callable[..., dict[str, Tensor]]:
    """Merge tensors into the model; the changes of its parameters, without those that are zero."""

    def merged(
        tensors: Mapping[str, Tensor], strength: float = 1.0, header: dict[str, str] | None = None
    ) -> dict[str, Tensor]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        count = merge_lora(model, write(tensors, header), strength)
        changes = {name: value - before[name] for name, value in model.state_dict().items()}
        changes = {name: change for name, change in changes.items() if change.any()}
        assert count == len(changes)
        return changes

    return merged
