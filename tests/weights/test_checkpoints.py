"""Strict loading; damaged, foreign and dangerous weight files are errors."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear, quantize_rows
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights import checkpoints, locating
from talkinghead_lab.weights.checkpoints import load_dit
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.locating import CheckpointFiles
from tests.parity import golden


@pytest.fixture
def files(tmp_path) -> CheckpointFiles:
    return golden.write_checkpoint(tmp_path)


def load(files: CheckpointFiles):
    return load_dit(files, torch.float32, "cpu")


def rewrite(path, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_mapped_not_copied(files):
    """On a CPU and in the stored type, parameters are memory-mapped."""
    model = load(files)
    mapped = Path("/proc/self/maps").read_text()
    assert str(files.infinitetalk) in mapped
    adapter = model.get_parameter("blocks.0.audio_cross_attn.proj.weight")
    ranges = [line.split()[0].split("-") for line in mapped.splitlines() if str(files.infinitetalk) in line]
    assert any(int(low, 16) <= adapter.data_ptr() < int(high, 16) for low, high in ranges)


def test_missing_tensor_is_named(files):
    rewrite(files.infinitetalk, lambda t: t.pop("blocks.1.audio_cross_attn.proj.bias"))
    with pytest.raises(CheckpointError, match=r"missing.*blocks\.1\.audio_cross_attn\.proj\.bias"):
        load(files)


def test_unexpected_tensor_is_named(files):
    rewrite(files.infinitetalk, lambda t: t.update({"blocks.0.surprise": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"unexpected.*blocks\.0\.surprise"):
        load(files)


def test_misshapen_tensor_is_named_with_both_shapes(files):
    rewrite(files.infinitetalk, lambda t: t.update({"blocks.0.norm_x.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"norm_x\.bias has shape \(3,\), not \(\d+,\)"):
        load(files)


def test_a_config_that_contradicts_the_tensors_is_an_error(files):
    config = files.wan / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 7}))
    with pytest.raises(CheckpointError, match="num_layers 7"):
        load(files)


def test_a_missing_shard_is_named(files):
    next(files.wan.glob("*-00002-of-00002.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards missing: diffusion_pytorch_model-00002"):
        load(files)


def test_an_index_lists_the_shards(files):
    shards = sorted(files.wan.glob("diffusion_pytorch_model-*.safetensors"))
    names = {"b-first.safetensors": shards[0], "a-second.safetensors": shards[1]}
    weight_map = {key: new for new, old in names.items() for key in load_file(old)}
    for new, old in names.items():
        old.rename(files.wan / new)
    index = files.wan / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert load(files).config.dim > 0


def test_truncated_safetensors(files):
    os.truncate(files.infinitetalk, files.infinitetalk.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load(files)


def test_truncated_pth(files):
    path = files.wan / "Wan2.1_VAE.pth"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        checkpoints.load_vae(files, torch.float32, "cpu")


class Dangerous:
    """Runs a shell command when unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_pth_file_is_not_run(tmp_path, plain):
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    if plain:
        path.write_bytes(pickle.dumps(Dangerous(f"touch {marker}")))
    else:
        torch.save({"weight": Dangerous(f"touch {marker}")}, path)
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert not marker.exists()


def test_the_error_for_a_missing_folder_names_the_variable_to_set(monkeypatch):
    for variable in ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"):
        monkeypatch.delenv(variable, raising=False)
    request = GenerationParams(audio_path="a", image_path="b", checkpoint="released")
    with pytest.raises(CheckpointError, match="CKPT_DIR"):
        checkpoint_files(request)


def test_folders_come_from_variables_and_parameters(files, monkeypatch, tmp_path):
    (tmp_path / "wav2vec_dir").mkdir()
    adapters = tmp_path / "adapters"
    for kind in ("single", "multi"):
        (adapters / kind).mkdir(parents=True)
        (adapters / kind / "infinitetalk.safetensors").write_bytes(files.infinitetalk.read_bytes())
    monkeypatch.setenv("CKPT_DIR", str(files.wan))
    monkeypatch.setenv("WAV2VEC_DIR", str(tmp_path / "wav2vec_dir"))
    request = GenerationParams(
        audio_path="a", image_path="b", checkpoint="released", infinitetalk_dir=str(adapters)
    )
    assert checkpoint_files(request).infinitetalk == adapters / "single" / "infinitetalk.safetensors"
    two = request.replace(second_audio_path="c")
    assert checkpoint_files(two).infinitetalk == adapters / "multi" / "infinitetalk.safetensors"


def test_a_quantised_text_encoder_is_found_next_to_a_quantised_transformer(files, tmp_path):
    outputs, case = golden.load("t5")
    plain = golden.parameters("t5", case["params"])
    torch.save(plain, files.wan / f"{locating.TEXT_ENCODER}.pth")
    quantised = tmp_path / "infinitetalk_single_int8.safetensors"
    shutil.copy(golden.FOLDER / "dit_int8_checkpoint.safetensors", quantised)
    shutil.copy(golden.FOLDER / "dit_int8_checkpoint.json", quantised.with_suffix(".json"))
    tensors, kinds = {}, {}
    for name, weight in plain.items():
        layer = name.removesuffix(".weight")
        if weight.ndim == 2 and "embedding" not in name:
            tensors[f"{name}._data"], tensors[f"{name}._scale"] = quantize_rows(weight, torch.int8)
            kinds[layer] = {"weights": "qint8", "activations": "none"}
        else:
            tensors[name] = weight
    save_file(tensors, tmp_path / "t5_int8.safetensors")
    (tmp_path / "t5_map_int8.json").write_text(json.dumps(kinds))
    encoder = checkpoints.load_text_encoder(
        CheckpointFiles(files.wan, files.wav2vec2, quantised), torch.float32, "cpu"
    )
    assert sum(isinstance(layer, RowQuantizedLinear) for layer in encoder.modules()) == len(kinds)
    with torch.inference_mode():
        hidden = encoder(outputs["ids"], outputs["mask"])
    error = golden.relative_error(hidden[0], outputs["hidden0"])
    assert 1e-5 < error < 0.05, "quantisation changes the values, but not by much"
