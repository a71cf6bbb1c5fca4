"""Every weight file is listed; what is called used or usable has been built and multiplied."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from talkinghead_lab.weights import search
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS
from tests.weights import quantized_files
from tests.weights.listed import listed
from tests.weights.models_tree import PLACES, write_models

FOLDERS = ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")
EVERYTHING = {*PLACES, "tokenizer"}


@pytest.fixture
def models(tmp_path) -> Path:
    return write_models(tmp_path)


def changed(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_complete_folder(models):
    files, roles = listed(1, weights=models)
    assert files.keys() == set(PLACES.values())
    assert {row.state for row in files.values()} == {"used"}
    assert all(row.roles == (role,) for role, place in PLACES.items() for row in [files[place]])
    assert files[PLACES["transformer"]].stored == {"fp16 tensor": 279}
    assert {row.layout for row in files.values()} == {"released names"}
    size = (models / PLACES["vae"]).stat().st_size
    assert files[PLACES["vae"]].gib == size / 2**30
    assert {row.error for row in files.values()} == {0.0}
    assert {role: row.state for role, row in roles.items()} == dict.fromkeys(EVERYTHING, "complete")


def test_an_empty_folder_lacks_everything(tmp_path):
    files, roles = listed(1, weights=tmp_path)
    assert files == {}
    assert {role: row.state for role, row in roles.items()} == dict.fromkeys(EVERYTHING, "missing")
    assert all("fetch" in row.next for row in roles.values())
    assert "no weight file for the speech encoder" in roles["speech_encoder"].reason


def test_three_folders_are_listed_with_what_they_lack(tmp_path):
    folders = {name: EMBEDDED_WEIGHTS / name for name in FOLDERS}
    files, roles = listed(1, **folders)
    assert files.pop("multi/infinitetalk.safetensors").state == "usable"  # with two speakers
    assert {row.state for row in files.values()} == {"used"}
    assert {row.state for row in roles.values()} == {"complete"}
    files, roles = listed(1, **folders | {"wav2vec_dir": tmp_path, "infinitetalk_dir": tmp_path / "none"})
    states = {role: row.state for role, row in roles.items() if row.state != "complete"}
    assert states == {"speech_encoder": "missing", "adapter": "missing", "transformer": "unchecked"}
    assert "infinitetalk_dir does not exist" in roles["adapter"].reason


def test_what_the_text_of_an_error_says_is_shown(models):
    whole = models / PLACES["image_encoder"]
    whole.write_bytes(whole.read_bytes()[:5000])
    (models / "loras").mkdir()
    pair = {"blocks.0.self_attn.q.lora_down.weight": torch.ones(1, 4)}
    save_file(pair, models / "loras" / "style.safetensors")
    save_file({"input_blocks.0.weight": torch.ones(1)}, models / "sd15.safetensors")
    save_file({"vace_blocks.0.weight": torch.ones(1)}, models / "vace.safetensors")
    torch.save({"epoch": 3}, models / "junk.bin")
    files, roles = listed(1, weights=models)
    unusable = {path: row for path, row in files.items() if row.state == "unusable"}
    expected = {
        PLACES["image_encoder"]: ("damaged or truncated", "Download it again."),
        "loras/style.safetensors": ("the file is a LoRA", "Name it in `loras`"),
        "sd15.safetensors": ("a U-Net of Stable Diffusion", ""),
        "vace.safetensors": ("Wan VACE", ""),
        "junk.bin": ("`epoch` of the weight file is of type int", ""),
    }
    assert unusable.keys() == expected.keys()
    for path, (reason, following) in expected.items():
        assert reason in unusable[path].reason, path
        assert following in unusable[path].next, path
        assert unusable[path].roles == ()
    assert roles["image_encoder"].state == "missing"
    assert roles["image_encoder"].reason == "no weight file for the image encoder in this folder."


def test_two_candidates_are_ambiguous_until_one_is_named(models):
    again = models / "vae" / "again.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy((models / PLACES["vae"]).with_suffix(suffix), again.with_suffix(suffix))
    files, roles = listed(1, weights=models)
    for path in (PLACES["vae"], "vae/again.safetensors"):
        assert files[path].state == "ambiguous"
        assert files[path].next == "Set `vae` to one of them."
    assert (roles["vae"].state, roles["transformer"].state) == ("ambiguous", "complete")
    files, roles = listed(1, weights=models, vae=again)
    assert (files["vae/again.safetensors"].state, files[PLACES["vae"]].state) == ("used", "usable")
    assert roles["vae"].state == "complete"
    changed(models / PLACES["vae"], lambda tensors: tensors.pop("decoder.conv1.bias"))
    files, _ = listed(1, weights=models, vae=again)
    assert files[PLACES["vae"]].state == "unusable"
    assert "decoder.conv1.bias" in files[PLACES["vae"]].reason


def test_adapters_for_another_number_of_speakers_are_usable(models):
    adapter = models / PLACES["adapter"]
    shutil.copy(adapter, adapter.with_name("multi.safetensors"))
    adapter.rename(adapter.with_name("single.safetensors"))
    for speakers, (own, other) in {1: ("single", "multi"), 2: ("multi", "single")}.items():
        files, _ = listed(speakers, weights=models)
        states = [files[f"diffusion_models/{name}.safetensors"].state for name in (own, other)]
        assert states == ["used", "usable"]


def test_a_transformer_without_adapter_is_unchecked(models):
    (models / PLACES["adapter"]).unlink()
    files, roles = listed(1, weights=models)
    assert files[PLACES["transformer"]].state == roles["transformer"].state == "unchecked"
    assert roles["adapter"].state == "missing"


def fp8_with(models: Path, change) -> tuple[str, dict, dict]:
    """A raw fp8 transformer with a change of one layer."""
    path, layer = models / PLACES["transformer"], "blocks.1.ffn.0.weight"
    tensors, _ = quantized_files.raw(quantized_files.FP8)(load_file(path))
    change(tensors[layer].view(torch.uint8))
    save_file(tensors, path)
    return layer, *listed(1, weights=models)


def test_raw_fp8_is_multiplied(models):
    _, files, roles = fp8_with(models, lambda stored: None)
    row = files[PLACES["transformer"]]
    assert (row.state, roles["transformer"].state) == ("used", "complete")
    assert row.stored["fp8 layer"] > 50
    assert sum(row.stored.values()) == 279


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_fp8_with_nan_is_not_called_complete(models, byte):
    layer, files, roles = fp8_with(models, lambda stored: stored[3, 5:9].fill_(byte))
    row = files[PLACES["transformer"]]
    assert (row.state, roles["transformer"].state) == ("unusable", "unusable")
    assert f"`{layer}` holds NaN" in row.reason
    assert roles["transformer"].reason == row.reason
    assert roles["adapter"].state == "complete"


def test_a_config_that_contradicts_the_weights_is_found(models):
    config = models / "diffusion_models" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_heads": 7}))
    files, roles = listed(1, weights=models)
    assert files[PLACES["transformer"]].state == roles["transformer"].state == "unusable"
    assert "num_heads" in roles["transformer"].reason


def test_hostile_entries_do_not_end_the_listing(models):
    (models / "loop.safetensors").symlink_to("loop.safetensors")
    (models / "nowhere.pth").symlink_to("none")
    (models / "folder.safetensors").mkdir()
    (models / "again").symlink_to(models)
    os.mkfifo(models / "fifo.bin")
    (models / "unreadable.ckpt").symlink_to("/proc/self/mem")
    (models / os.fsdecode(b"\xff\n.pt")).write_bytes(b"\x80")
    files, roles = listed(1, weights=models)
    others = {path: row.state for path, row in files.items() if path not in PLACES.values()}
    assert others == dict.fromkeys(
        ("loop.safetensors", "nowhere.pth", "fifo.bin", "unreadable.ckpt", os.fsdecode(b"\xff\n.pt")),
        "unusable",
    )
    assert files["unreadable.ckpt"].reason == "the weight file cannot be read (Input/output error)."
    assert files["unreadable.ckpt"].next == "Check its permissions and its disk."
    assert {row.state for row in roles.values()} == {"complete"}


def test_of_thousands_of_files_only_weight_files_are_opened(models, monkeypatch):
    opened = []
    real = search.network_content
    monkeypatch.setattr(search, "network_content", lambda *paths: opened.append(paths) or real(*paths))
    (models / "many").mkdir()
    for number in range(3000):
        (models / "many" / f"{number}.txt").touch()
    for number in range(200):
        (models / "many" / f"{number}.bin").write_bytes(b"x")
    files, roles = listed(1, weights=models)
    assert len(set(opened)) == len(files) == 200 + len(PLACES)
    assert len(opened) <= len(files) + 1, "the text encoder once more, for its tokenizer"
    assert {row.state for row in roles.values()} == {"complete"}
