"""A converted file holds what the precision would have made of the files that it was made from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import OutputError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import load_settings, lora_files
from talkinghead_lab.weights import convert
from talkinghead_lab.weights.checkpoints import load_dit
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS, locate
from talkinghead_lab.weights.transformer import load_transformer

LORAS = [{"path": "sample:fast-lora", "scale": 0.7}]
FOLDERS = {name: str(EMBEDDED_WEIGHTS / name) for name in ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")}


def request_of(**fields) -> GenerationParams:
    return GenerationParams(audio_path="a", image_path="b", checkpoint="released", **FOLDERS, **fields)


@pytest.mark.parametrize("loras", [[], LORAS])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_converted_file_loads_as_what_it_was_made_from(tmp_path, precision, loras):
    request = request_of(precision=precision, loras=loras)
    target = tmp_path / "converted.safetensors"
    # As on a GPU; a CPU computes in float32 under fp8.
    settings = replace(load_settings(request), compute=torch.bfloat16)
    written = convert.convert_transformer(settings.files, settings.loras, precision, target)
    assert target.stat().st_size == written
    shutil.copy(EMBEDDED_WEIGHTS / "ckpt_dir" / "config.json", tmp_path)
    converted = load_settings(request_of(precision=precision, transformer=str(target), adapter=str(target)))
    loaded = load_transformer(replace(converted, compute=torch.bfloat16)).state_dict()
    expected = load_transformer(settings).state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert any(tensor.dtype is torch.float8_e4m3fn for tensor in loaded.values()) is (precision == "fp8")


def test_the_recipe_names_what_went_in(tmp_path):
    files = locate("embedded", 1, {})
    convert.convert_transformer(
        files, lora_files(request_of(loras=LORAS)), "bf16", tmp_path / "a.safetensors"
    )
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe["precision"] == "bf16"
    assert recipe["files"].keys() == {"diffusion_pytorch_model.safetensors", "infinitetalk.safetensors"}
    assert [(lora["name"], lora["scale"]) for lora in recipe["loras"]] == [("fast-lora.safetensors", 0.7)]
    assert all(len(digest) == 64 for digest in recipe["files"].values())


def test_layers_in_full_precision_stay_so(tmp_path, monkeypatch):
    """fp8 layers that a file wants multiplied in full precision are converted again with that mark."""
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copy(EMBEDDED_WEIGHTS / "ckpt_dir" / "config.json", tmp_path)
    convert.convert_transformer(locate("embedded", 1, {}), (), "fp8", first)

    def marked(*arguments):
        dit = load_dit(*arguments)
        dit.get_submodule("blocks.0.ffn.0").full_precision = True
        return dit

    monkeypatch.setattr(convert, "load_dit", marked)
    both = ("transformer", "adapter")
    convert.convert_transformer(
        locate("released", 1, dict.fromkeys(both, str(first)), both), (), "fp8", again
    )
    dit = load_dit(locate("released", 1, dict.fromkeys(both, str(again)), both), None, "cpu")
    assert dit.get_submodule("blocks.0.ffn.0").full_precision
    assert not dit.get_submodule("blocks.1.ffn.0").full_precision


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, monkeypatch):
    files, target = locate("embedded", 1, {}), tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(convert.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
        with pytest.raises(OutputError, match="no space"):
            convert.convert_transformer(files, (), "bf16", target)
    with monkeypatch.context() as patch:
        patch.setattr(convert.SafetensorsFile, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert.convert_transformer(files, (), "bf16", target)
    assert list(tmp_path.iterdir()) == []


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_command(tmp_path, capsys):
    folder, target = tmp_path / "models", tmp_path / "out.safetensors"
    folder.mkdir()
    files = locate("embedded", 1, {})
    for role in ("transformer", "adapter"):
        shutil.copy(files.of_role(role)[0], folder / f"{role}.safetensors")
    shutil.copy(EMBEDDED_WEIGHTS / "ckpt_dir" / "config.json", folder)
    arguments = ["convert", str(folder), str(target), "--precision", "bf16"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "-p", "loras", "[{path: sample:fast-lora, scale: [1, 0]}]"]) == 2
    assert "merged LoRAs, each of one strength" in capsys.readouterr().err
