"""Headers of released sizes: published lengths of files tell the types in them, and they fit the networks."""

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
)

from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.checkpoints import NETWORKS, load_network, load_tokenizer
from talkinghead_lab.weights.formats.names.recognition import recognised
from talkinghead_lab.weights.locating import locate
from talkinghead_lab.weights.reading import shapes_of
from tests.weights.formats.manifests import SHAPES, Manifest, write_manifest

FORMAT = {"format": "pt"}
# Both adapters have 34 to 39 characters more in their headers than `FORMAT` takes; which, is not known.
NOTE = FORMAT | {"note": 26 * "."}


def is_block_matrix(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def typed(role: str, dtype: str, others: tuple[str, ...] = (), rest: str = "F32") -> dict:
    """Block matrices, and `others`, in one type, the rest in another."""
    return {
        name: (dtype if is_block_matrix(name) or name in others else rest, shape)
        for name, shape in SHAPES[role].items()
    }


def scaled(manifest: Manifest) -> dict:
    """With a scale for every fp8 matrix and the marker of ComfyUI, for matmuls in full precision."""
    scales = {
        name.replace(".weight", ".scale_weight"): ("F32", (1,))
        for name, (dtype, _) in manifest.items()
        if dtype == "F8_E4M3"
    }
    return {**manifest, **scales, "scaled_fp8": ("F8_E4M3", (2,))}


FP8_TRANSFORMER = typed("transformer", "F8_E4M3", ("text_embedding.0.weight", "text_embedding.2.weight"))
# Published length → tensors and metadata. WanVideoWrapper's files at Hugging Face, Kijai/WanVideo_comfy.
PUBLISHED = {
    16_993_877_896: (FP8_TRANSFORMER, FORMAT),
    5_125_258_232: (typed("adapter", "F16"), NOTE),
    2_713_548_210: (scaled(typed("adapter", "F8_E4M3")), NOTE),
}


def write(path, length: int) -> int:
    tensors, metadata = PUBLISHED[length]
    return write_manifest(
        path, tensors, metadata, [name for name in tensors if name.endswith("scale_weight")]
    )


@pytest.mark.parametrize("length", PUBLISHED)
def test_the_types_make_the_published_length(tmp_path, length):
    assert write(tmp_path / "a.safetensors", length) == length


def on_meta(role: str, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in SHAPES[role].items()}


def of_transformers(network: str) -> dict[str, torch.Tensor]:
    """The tensors of a class of transformers at the released sizes, without values."""
    text = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
    image = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    with torch.device("meta"):
        if network == "text_encoder":
            config = UMT5Config(**text, num_heads=64, feed_forward_proj="gated-gelu")
            return UMT5EncoderModel(config).state_dict()
        if network == "image_encoder":
            config = CLIPVisionConfig(**image, num_attention_heads=16, projection_dim=1024)
            return CLIPVisionModelWithProjection(config).state_dict()
        return Wav2Vec2ForPreTraining(Wav2Vec2Config()).state_dict()


def test_umt5_of_transformers_has_the_released_tensors():
    found = recognised(of_transformers("text_encoder"), Path("a")).tensors
    assert shapes_of(found) == shapes_of(on_meta("text_encoder"))


@pytest.mark.slow
def test_a_folder_of_single_files_of_released_sizes_needs_nothing_else(tmp_path):
    """Files as ComfyUI's users have them: no config.json and no tokenizer lie beside them."""
    write(tmp_path / "transformer.safetensors", 16_993_877_896)
    write(tmp_path / "adapter.safetensors", 2_713_548_210)
    write_manifest(tmp_path / "vae.safetensors", {n: ("BF16", s) for n, s in SHAPES["vae"].items()}, {})
    for role in ("text_encoder", "image_encoder", "speech_encoder"):
        shapes = shapes_of(of_transformers(role))
        shapes.pop("encoder.embed_tokens.weight", None)
        manifest = {name: ("F16", shape) for name, shape in shapes.items()}
        if role == "text_encoder":
            manifest["spiece_model"] = ("U8", (4_548_313,))
        write_manifest(tmp_path / f"{role}.safetensors", manifest, {})
    files = locate("released", 1, {"weights": str(tmp_path)})
    networks = {name: load_network(name, files, torch.bfloat16, "meta") for name in NETWORKS}
    configs = {name: network.config for name, network in networks.items()}
    dit = configs["transformer"]
    assert (dit.num_heads, dit.text_len, dit.num_layers, dit.eps) == (40, 512, 40, 1e-6)
    assert (configs["image encoder"].num_heads, configs["image encoder"].image_size) == (16, 224)
    assert (configs["text encoder"].num_heads, configs["text encoder"].max_distance) == (64, 128)
    assert configs["video autoencoder"].z_dim == 16
    assert configs["speech encoder"].samples_per_feature == 320
    assert not configs["speech encoder"].do_normalize
    layers = networks["transformer"].modules()
    assert sum(isinstance(layer, QuantizedLinear) for layer in layers) == 40 * (12 + 3) + 2
    tokens = load_tokenizer(files, 8)(["a man talks to the camera"])
    assert tokens.ids.tolist() == [[289, 621, 126173, 315, 312, 5823, 1, 0]]


@pytest.mark.parametrize("role", ["transformer", "adapter", "vae", "text_encoder"])
def test_released_tensors_are_recognised_at_released_sizes(role):
    assert recognised(on_meta(role, "model."), Path("a")).roles == (role,)


def test_classes_of_diffusers_have_the_names_that_are_expected_of_them():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        found = recognised(diffusers.AutoencoderKLWan().state_dict(), Path("a"))
    assert found.layout == "names of diffusers"
    assert shapes_of(found.tensors) == shapes_of(on_meta("vae"))
