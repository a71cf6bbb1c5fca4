"""Headers of released sizes: published lengths of files tell the types in them, and they fit the networks."""

from pathlib import Path

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.checkpoints import load_dit
from talkinghead_lab.weights.formats.names.recognition import recognised
from talkinghead_lab.weights.locating import CheckpointFiles
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


@pytest.mark.slow
def test_single_files_of_released_sizes_fit_the_network(tmp_path):
    """No config.json lies beside them, and nothing is read but headers and scales."""
    paths = tmp_path / "transformer.safetensors", tmp_path / "adapter.safetensors"
    for path, length in zip(paths, (16_993_877_896, 2_713_548_210), strict=True):
        write(path, length)
    files = CheckpointFiles(named={"transformer": paths[:1], "adapter": paths[1:]})
    dit = load_dit(files, torch.bfloat16, "meta")
    assert (dit.config.num_heads, dit.config.text_len, dit.config.num_layers) == (40, 512, 40)
    quantised = [name for name, layer in dit.named_modules() if isinstance(layer, QuantizedLinear)]
    assert len(quantised) == 40 * (12 + 3) + 2


def on_meta(role: str, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in SHAPES[role].items()}


def test_networks_of_transformers_at_released_sizes_have_the_released_tensors():
    with torch.device("meta"):
        sizes = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
        text = UMT5EncoderModel(UMT5Config(**sizes, num_heads=64, feed_forward_proj="gated-gelu"))
    found = recognised(text.state_dict(), Path("a")).tensors
    assert shapes_of(found) == shapes_of(on_meta("text_encoder"))


@pytest.mark.parametrize("role", ["transformer", "adapter", "vae", "text_encoder"])
def test_released_tensors_are_recognised_at_released_sizes(role):
    assert recognised(on_meta(role, "model."), Path("a")).roles == (role,)


def test_classes_of_diffusers_have_the_names_that_are_expected_of_them():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        found = recognised(diffusers.AutoencoderKLWan().state_dict(), Path("a"))
    assert found.layout == "names of diffusers"
    assert shapes_of(found.tensors) == shapes_of(on_meta("vae"))
