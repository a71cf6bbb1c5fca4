"""LoRA merging and quantised checkpoints against the reference, loaded from files with the released names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.locating import CheckpointFiles
from talkinghead_lab.weights.lora import merge_lora
from tests.parity import golden
from tests.parity.test_dit import inputs


@torch.inference_mode()
def velocity(model: DiT, timestep: float = 437.25) -> torch.Tensor:
    return model(timesteps=torch.tensor([timestep]), **inputs(1))[0]


@pytest.fixture
def files(tmp_path) -> CheckpointFiles:
    return golden.write_checkpoint(tmp_path)


def test_lora(files, tmp_path):
    outputs, case = golden.load("lora")
    tensors = {key: golden.seeded(key, shape, case["tensor_scale"]) for key, shape in case["tensors"].items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    model = checkpoints.load_dit(files, torch.float32, "cpu")
    assert merge_lora(model, tmp_path / "lora.safetensors", case["scale"]) == sum(
        key.endswith(("lora_down.weight", ".diff", ".diff_b")) for key in tensors
    )
    golden.compare("lora velocity", velocity(model), outputs["velocity.t437.25"], 1e-4)


@pytest.mark.parametrize("stored", ["int8", "fp8"])
def test_quantised_checkpoint(stored, files, tmp_path):
    outputs, _ = golden.load(f"dit_{stored}")
    quantised = tmp_path / f"infinitetalk_single_{stored}.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(golden.FOLDER / f"dit_{stored}_checkpoint{suffix}", quantised.with_suffix(suffix))
    model = checkpoints.load_dit(CheckpointFiles(files.wan, files.wav2vec2, quantised), torch.float32, "cpu")
    layers = {name for name, layer in model.named_modules() if isinstance(layer, RowQuantizedLinear)}
    assert layers == set(json.loads(quantised.with_suffix(".json").read_text()))
    golden.compare(f"dit_{stored} velocity", velocity(model), outputs["velocity.t437.25"], 1e-3)


def test_lora_changes_quantised_weights(files, tmp_path):
    """The reference silently ignores LoRAs on quantised weights."""
    outputs, case = golden.load("lora")
    tensors = {key: golden.seeded(key, shape, case["tensor_scale"]) for key, shape in case["tensors"].items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    quantised = tmp_path / "quantised.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(golden.FOLDER / f"dit_int8_checkpoint{suffix}", quantised.with_suffix(suffix))
    model = checkpoints.load_dit(CheckpointFiles(files.wan, files.wav2vec2, quantised), torch.float32, "cpu")
    without = velocity(model)
    merge_lora(model, tmp_path / "lora.safetensors", case["scale"])
    expected = outputs["velocity.t437.25"]
    rounding, effect = (golden.relative_error(v, expected) for v in (velocity(model), without))
    assert rounding < 0.1 * effect
