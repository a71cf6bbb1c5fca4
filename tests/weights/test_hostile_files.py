"""Damaged and contradictory files: every loader names the file and the reason."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights import checkpoints, locating
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.lora import merge_lora

FOLDERS = tuple(locating.RELEASED_REPOSITORIES)
LONG = 1_000_000_000


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def refusal(folder: Path, network: str) -> str:
    """What the loader of a network says; all others load."""
    files = locating.locate("released", 1, {name: str(folder / name) for name in FOLDERS})
    for name, load in checkpoints.NETWORKS.items():
        if name != network:
            load(files, torch.float32, "meta")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.NETWORKS[network](files, torch.float32, "cpu")
    assert len(str(caught.value)) < 1500
    return str(caught.value)


NETWORKS_OF = {
    "ckpt_dir/config.json": "transformer",
    "wav2vec_dir/config.json": "speech encoder",
    "ckpt_dir/Wan2.1_VAE.json": "video autoencoder",
    "ckpt_dir/models_clip_open-clip-xlm-roberta-large-vit-huge-14.json": "image encoder",
    "ckpt_dir/models_t5_umt5-xxl-enc-bf16.json": "text encoder",
}
WAN, SPEECH, AUTOENCODER, IMAGE, TEXT = NETWORKS_OF


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        *((WAN, "num_heads", value) for value in (0, -1, 5, "x", True, 1.5, None, LONG, [3])),
        *((WAN, "eps", value) for value in ("x", 0, -1, float("nan"), float("inf"), None)),
        *((WAN, "text_len", value) for value in (-1, 0, 4097, LONG, "64", [64], None)),
        *((WAN, field, "x") for field in ("dim", "ffn_dim", "num_layers", "text_dim")),
        (WAN, "model_type", 7),
        *((SPEECH, "num_attention_heads", value) for value in (0, 7, "x", None, LONG)),
        *((SPEECH, "conv_stride", value) for value in (5, "x", [5, 2], [0] * 7, [LONG] * 7, [2.5] * 7)),
        *((SPEECH, "layer_norm_eps", value) for value in ("x", 0, float("nan"))),
        *((SPEECH, "hidden_act", value) for value in (7, "no-such-activation")),
        *((SPEECH, "sampling_rate", value) for value in (8000, "16000")),
        (SPEECH, "conv_dim", {"a": 1}),
        *((AUTOENCODER, "latent_std", value) for value in ("x", [0.0] * 24, [1.0], [float("nan")] * 24)),
        (AUTOENCODER, "latent_mean", 3),
        *((IMAGE, "num_heads", value) for value in (0, "x", 7, LONG)),
        (IMAGE, "image_std", [1, 1]),
        (IMAGE, "activation", "no-such-activation"),
        (TEXT, "norm_eps", "x"),
        (TEXT, "max_distance", 0),
    ],
)
def test_a_field_of_a_config_that_cannot_be_is_refused(folder, file, field, value):
    path = folder / file
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(fields | {field: value}))
    message = refusal(folder, NETWORKS_OF[file])
    assert field in message or str(value) in message


@pytest.mark.parametrize("file", NETWORKS_OF)
@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", "", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(folder, file, content):
    (folder / file).write_text(content)
    assert Path(file).name in refusal(folder, NETWORKS_OF[file])


@pytest.mark.parametrize(
    "index",
    [
        {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": 3}, {"weight_map": {"a": 3}}, [],
        {"weight_map": {"a": "../other.safetensors"}}, {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "b/c.safetensors"}}, {"weight_map": {"a": ".."}}, {"weight_map": {"a": ""}},
        {"weight_map": {"a": "none.safetensors"}}, {"weight_map": {"a": "null\0byte"}},
    ],
)  # fmt: skip
def test_an_index_that_names_no_shards_of_its_folder_is_refused(folder, index):
    path = folder / "ckpt_dir" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    message = refusal(folder, "transformer")
    assert path.name in message or "none.safetensors" in message


def changed(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_a_weight_that_is_not_floating_point_is_refused(folder, kind):
    name = "blocks.0.audio_cross_attn.proj.weight"
    path = folder / "infinitetalk_dir" / "infinitetalk.safetensors"
    if not path.exists():
        path = folder / "infinitetalk_dir" / "single" / "infinitetalk.safetensors"
    changed(path, lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    message = refusal(folder, "transformer")
    assert name in message and path.name in message


@pytest.mark.parametrize("name", ["patch_embedding.weight", "time_embedding.0.weight"])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (1,), (3, 0, 2), ()])
def test_a_tensor_of_an_impossible_shape_is_refused(folder, name, shape):
    path = next((folder / "ckpt_dir").glob("diffusion_pytorch_model*.safetensors"))
    changed(path, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    assert refusal(folder, "transformer")


def test_a_block_number_beyond_every_network_is_refused(folder):
    path = next((folder / "wav2vec_dir").glob("*.safetensors"))
    changed(path, lambda tensors: tensors.update({f"encoder.layers.{LONG}.x": torch.zeros(1)}))
    assert str(LONG) in refusal(folder, "speech encoder")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 1000, -1])
def test_a_truncated_file_is_refused(folder, length):
    path = next((folder / "ckpt_dir").glob("Wan2.1_VAE.safetensors"))
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    assert path.name in refusal(folder, "video autoencoder")


HEADERS = [
    {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
    {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}},
    {"a": 3},
    [],
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match=r"damaged or truncated.*a\.safetensors"):
        read_tensors(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((2**62).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        read_tensors(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (3, "of type int"),
        ([torch.zeros(1)], "of type list"),
        (torch.zeros(3), "of type Tensor"),
        ({"a": 3}, "`a` of the weight file is of type int"),
        ({"a": {"b": torch.zeros(1)}}, "`a` of the weight file is of type dict"),
        (
            {"state_dict": {"a": torch.zeros(1)}, "epoch": 3},
            "`state_dict` of the weight file is of type dict",
        ),
        ({"state_dict": [3]}, "of type list"),
        ({3: torch.zeros(1)}, "`3` of the weight file"),
        ({"a": torch.zeros(2, 0)}, "`a` of the weight file is empty"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "fewer values than its shape"),
        ({"a": torch.eye(2).to_sparse()}, "not a dense tensor"),
        ({"a": None, "b": torch.zeros(1)}, "`a` of the weight file is of type NoneType"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_that_holds_something_else_is_refused_by_name(tmp_path, content, named, is_zip):
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [dict, lambda tensors: {"state_dict": tensors}])
def test_files_of_every_age_of_pytorch_are_read(tmp_path, is_zip, wrap):
    """Files from before 2020 are no zip archives, as the released `syncnet_v2.model`."""
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    for name in ("weights.pth", "syncnet_v2.model"):
        torch.save(wrap(tensors), tmp_path / name, _use_new_zipfile_serialization=is_zip)
        found = read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_an_old_network_loads_from_its_old_file(checkpoint, folder):
    path = folder / "ckpt_dir" / "Wan2.1_VAE.safetensors"
    torch.save(load_file(path), path.with_suffix(".pth"), _use_new_zipfile_serialization=False)
    path.unlink()
    files = locating.locate("released", 1, {name: str(folder / name) for name in FOLDERS})
    assert checkpoints.load_vae(files, torch.float32, "cpu").config.z_dim > 0
    os.truncate(path.with_suffix(".pth"), 5000)
    assert "damaged or truncated" in refusal(folder, "video autoencoder")


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": RunsCode()}))


def write_script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


@pytest.mark.filterwarnings("ignore:.*TorchScript archive", "ignore:.*torch.jit.s")
@pytest.mark.parametrize(
    "write",
    [
        write_pickle,
        write_script,
        lambda path: torch.save({"a": RunsCode()}, path),
        lambda path: torch.save({"a": RunsCode()}, path, _use_new_zipfile_serialization=False),
        lambda path: torch.save(nn.Linear(2, 2), path),
    ],
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(Path("weights.pth"))
    with pytest.raises(CheckpointError, match=r"more than tensors and was not opened.*weights\.pth"):
        read_tensors(Path("weights.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (bytes(5000), "starts like no safetensors, PyTorch or GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
            "only a pointer of Git LFS",
        ),
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", "holds text: '<!DOCTYPE html>"),
        (b'{"error": "gated repository"}', 'holds text: \'{"error"'),
        (torch.save, "one of PyTorch, not of safetensors.*Rename it to weights.pth"),
    ],
)
def test_what_stands_in_place_of_a_file_is_named(tmp_path, content, said):
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=said):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS", ".pth", ".ckpt", ".bin", ""])
def test_the_first_bytes_tell_safetensors(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file({"a": torch.arange(3.0)}, path)
    assert read_tensors(path)["a"].tolist() == [0, 1, 2]


def test_an_unfinished_download_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    path.with_name("weights.safetensors.aria2").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match="download of the weight file is not finished"):
        read_tensors(path)


def test_a_link_that_leads_nowhere_names_its_target(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=r"leads nowhere.*weights\.safetensors → \.\./\.\./blobs/0123"):
        read_tensors(path)


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_a_lora_of_another_type_is_refused_by_name(tmp_path, kind):
    model = nn.Sequential(nn.Linear(4, 4))
    pair = {"0.lora_down.weight": torch.ones(1, 4).to(kind), "0.lora_up.weight": torch.ones(4, 1)}
    save_file(pair, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"`0\.lora_down\.weight` of the LoRA .*lora\.safetensors"):
        merge_lora(model, tmp_path / "lora.safetensors", 1.0)


@pytest.mark.parametrize("kinds", [3, {"weights": []}, {"weights": 3}, {}])
def test_a_quantisation_map_that_names_no_type_is_refused(folder, kinds):
    path = next((folder / "infinitetalk_dir").rglob("infinitetalk.safetensors")).with_suffix(".json")
    path.write_text(json.dumps({"blocks.0.self_attn.q": kinds, "blocks.0.self_attn.k": {}}))
    if kinds == 3:
        path.write_text(json.dumps({"blocks.0.self_attn.q": {"weights": [3]}}))
    assert refusal(folder, "transformer")
