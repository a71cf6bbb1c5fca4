"""Weight files of a folder are found by what they hold; what could be meant in two ways is an error."""

import hashlib
import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.request_fields import RELEASED_ONLY, WEIGHT_FILES
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.locating import CheckpointFiles, locate, weight_files
from talkinghead_lab.weights.search import UMT5_TOKENIZER
from tests.weights.formats.manifests import SHAPES, write_manifest
from tests.weights.models_tree import PLACES, write_models


@pytest.fixture
def models(tmp_path) -> Path:
    return write_models(tmp_path)


def files_of(folder: Path, speakers: int = 1, **sources: Path | str):
    return locate("released", speakers, {"weights": str(folder)} | {k: str(v) for k, v in sources.items()})


def test_the_roles_of_requests_are_those_of_files():
    assert tuple(ROLES) == WEIGHT_FILES


def test_files_are_found_by_their_content(models):
    files = files_of(models)
    assert {role: files.of_role(role) for role in ROLES} == {
        role: (models / place,) for role, place in PLACES.items()
    }
    assert files.tokenizer == models / "text_encoders" / "google" / "umt5-xxl"
    loaded = checkpoints.load_dit(files, torch.float32, "cpu").state_dict()
    bundled = checkpoints.load_dit(locate("embedded", 1, {}), torch.float32, "cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in bundled.items())


def test_every_file_that_is_read_is_recorded(models):
    recorded = weight_files(files_of(models))
    expected = {f"{role}/{Path(place).name}" for role, place in PLACES.items()}
    expected |= {"transformer/config.json", "speech_encoder/config.json"}
    expected |= {"vae/c.json", "image_encoder/e.json"}
    assert expected <= recorded.keys()
    assert "tokenizer/tokenizer.json" in recorded


def test_two_candidates_are_listed_with_the_field_that_chooses(models):
    shutil.copy(models / PLACES["vae"], models / "vae" / "again.safetensors")
    with pytest.raises(CheckpointError, match=r"2 weight files.*vae/again.*vae/c.*Set `vae`"):
        files_of(models)
    assert files_of(models, vae=models / "vae" / "c.safetensors").of_role("vae") == (
        models / "vae" / "c.safetensors",
    )


def test_a_path_that_names_another_model_with_the_same_header_is_doubted(models):
    qwen = models / "vae" / "qwen_image_vae.safetensors"
    shutil.copy(models / PLACES["vae"], qwen)
    assert files_of(models).of_role("vae") == (models / PLACES["vae"],)
    (models / PLACES["vae"]).unlink()
    with pytest.raises(CheckpointError, match=r"autoencoder of Qwen-Image.*qwen_image_vae.*Set `vae`"):
        files_of(models)
    assert files_of(models, vae=qwen).of_role("vae") == (qwen,)
    transformer = models / PLACES["transformer"]
    transformer.rename(transformer.with_name("i2v_720p.safetensors"))
    assert files_of(models, vae=qwen).of_role("transformer")[0].name == "i2v_720p.safetensors"


def test_a_link_to_a_file_is_no_second_candidate(models):
    (models / "links").mkdir()
    (models / "links" / "vae.safetensors").symlink_to(models / PLACES["vae"])
    (models / "loop").symlink_to(models)
    assert files_of(models).of_role("vae")[0].resolve() == models / PLACES["vae"]


def test_a_missing_role_names_its_field_and_what_was_unusable(models):
    (models / PLACES["image_encoder"]).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"image encoder.*e\.safetensors: .*damaged.*`image_encoder`"):
        files_of(models)


def test_adapters_are_told_apart_by_their_paths(models):
    adapter = models / PLACES["adapter"]
    for name in ("InfiniteTalk-Single", "InfiniteTalk-Multi"):
        shutil.copy(adapter, adapter.with_name(f"{name}.safetensors"))
    adapter.unlink()
    for speakers, name in ((1, "Single"), (2, "Multi")):
        assert files_of(models, speakers).of_role("adapter")[0].stem == f"InfiniteTalk-{name}"
    adapter.with_name("InfiniteTalk-Single.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no InfiniteTalk weights for 1 speaker.*`adapter`"):
        files_of(models)


def write_two_shards(whole: Path, first_ends: int = 50) -> list[str]:
    """Split a file at its 51st tensor; the first shard may hold more. Returns the tensors' names, sorted."""
    tensors = load_file(whole)
    names = sorted(tensors)
    for number, part in enumerate((names[:first_ends], names[50:]), start=1):
        save_file({n: tensors[n] for n in part}, whole.with_name(f"t-0000{number}-of-00002.safetensors"))
    whole.unlink()
    return names


def test_shards_are_one_file(models):
    write_two_shards(models / PLACES["transformer"])
    shards = files_of(models).of_role("transformer")
    assert [path.name for path in shards] == ["t-00001-of-00002.safetensors", "t-00002-of-00002.safetensors"]
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards missing: t-00002-of-00002\.safetensors"):
        files_of(models)


def write_indexed(whole: Path) -> Path:
    """Split a transformer as LightX2V does: a file for each block, one for the rest, and an index."""
    tensors, files = load_file(whole), {}
    for name in tensors:
        block = name.split(".")[1] if name.startswith("blocks.") else None
        files[name] = "non_block.safetensors" if block is None else f"block_{block}.safetensors"
    for file in set(files.values()):
        save_file({n: tensors[n] for n in tensors if files[n] == file}, whole.with_name(file))
    index = whole.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    whole.unlink()
    return index


def test_an_index_tells_shards_of_any_name(models):
    index = write_indexed(models / PLACES["transformer"])
    shards = files_of(models).of_role("transformer")
    assert {path.stem for path in shards} >= {"block_0", "block_1", "non_block"}
    assert checkpoints.load_dit(files_of(models), torch.float32, "cpu").config.num_layers > 1
    assert files_of(models, transformer=index).of_role("transformer") == shards
    (models / "diffusion_models" / "block_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of \d+ shards missing: block_1\.safetensors"):
        files_of(models)


def test_a_damaged_index_is_no_problem_of_other_files(models):
    index = models / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{")
    assert files_of(models).of_role("vae") == (models / PLACES["vae"],)
    shutil.copy(models / PLACES["transformer"], index.with_name("diffusion_pytorch_model-1.safetensors"))
    (models / PLACES["transformer"]).unlink()
    with pytest.raises(
        CheckpointError, match=r"diffusion_pytorch_model-1\.safetensors: cannot be read as JSON"
    ):
        files_of(models)


def test_a_tensor_in_two_shards_is_refused(models):
    names = write_two_shards(models / PLACES["transformer"], first_ends=51)
    with pytest.raises(CheckpointError, match=f"two shards hold `{names[50]}`"):
        files_of(models)


def test_one_file_may_hold_transformer_and_adapter(models):
    merged = load_file(models / PLACES["transformer"]) | load_file(models / PLACES["adapter"])
    for role in ("transformer", "adapter"):
        (models / PLACES[role]).unlink()
    save_file(merged, models / "diffusion_models" / "merged.safetensors")
    files = files_of(models)
    assert files.of_role("transformer") == files.of_role("adapter")
    assert checkpoints.load_dit(files, torch.float32, "cpu").config.num_layers > 0
    elsewhere = (models / "diffusion_models" / "merged.safetensors").rename(models.parent / "m.safetensors")
    assert files_of(models, transformer=elsewhere).of_role("adapter") == (elsewhere,)


def test_a_merged_file_takes_no_other_adapter(models):
    merged = models.parent / "m.safetensors"
    save_file(load_file(models / PLACES["transformer"]) | load_file(models / PLACES["adapter"]), merged)
    files = files_of(models, transformer=merged, adapter=models / PLACES["adapter"])
    with pytest.raises(CheckpointError, match=r"both hold \d+ tensors.*m\.safetensors and .*b\.safetensors"):
        checkpoints.load_dit(files, torch.float32, "cpu")


def test_single_files_need_no_folder(models):
    fields = {role: str(models / place) for role, place in PLACES.items()}
    request = GenerationParams(audio_path="a", image_path="b", **fields)
    assert request.checkpoint == "released"
    assert checkpoint_files(request).tokenizer == models / "text_encoders" / "google" / "umt5-xxl"
    with pytest.raises(CheckpointError, match="`vae` names a folder, not a file"):
        checkpoint_files(request.replace(vae=str(models)))


def test_the_variable_names_a_folder(models, monkeypatch):
    for variable in ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WEIGHTS_DIR", str(models))
    assert locate("released", 1, {}).of_role("vae") == (models / PLACES["vae"],)
    monkeypatch.setenv("WEIGHTS_DIR", str(models / "nowhere"))
    with pytest.raises(CheckpointError, match="no folder"):
        locate("released", 1, {})


@pytest.mark.parametrize("field", RELEASED_ONLY)
def test_weights_are_not_silently_ignored(field):
    with pytest.raises(InvalidRequest, match=f"{field} names weights, but checkpoint is embedded"):
        GenerationParams(audio_path="a", image_path="b", checkpoint="embedded", **{field: "w"})


def test_two_different_tokenizers_are_an_error(models):
    other = models / "other" / "tokenizer.json"
    other.parent.mkdir()
    source = models / "text_encoders" / "google" / "umt5-xxl" / "tokenizer.json"
    other.write_text(json.dumps(json.loads(source.read_text())))
    if other.read_bytes() == source.read_bytes():
        other.write_text(source.read_text() + " ")
    with pytest.raises(CheckpointError, match="2 tokenizers"):
        files_of(models)
    for path in (other, source):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizers.*for .*d\.safetensors"):
        files_of(models)


@pytest.mark.slow
def test_the_tokenizer_of_umt5_comes_with_the_package(models):
    """The text encoder's file has the released shapes and no data; tokenizers of other models lie nearby."""
    write_manifest(
        models / PLACES["text_encoder"], {n: ("BF16", s) for n, s in SHAPES["text_encoder"].items()}, {}
    )
    (models / "tokenizer.json").write_text("{}")
    files = files_of(models)
    assert files.tokenizer == UMT5_TOKENIZER
    assert f"tokenizer/{UMT5_TOKENIZER.name}" in weight_files(files)
    content = lzma.decompress(UMT5_TOKENIZER.read_bytes())
    assert hashlib.sha256(content).hexdigest() in (UMT5_TOKENIZER.parent / "README.md").read_text()
    folders = CheckpointFiles(models / "text_encoders", named={"text_encoder": files.of_role("text_encoder")})
    assert folders.tokenizer == models / "text_encoders" / "google" / "umt5-xxl"
    shutil.rmtree(models / "text_encoders" / "google")
    assert folders.tokenizer == UMT5_TOKENIZER
