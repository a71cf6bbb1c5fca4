"""The bundled model, written as other programs write it, makes the video that it makes as it is bundled."""

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from talkinghead_lab.media.video import read_frames
from talkinghead_lab.models.quantized.rows import quantize_rows
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS, locate
from talkinghead_lab.weights.writing import Networks
from tests.weights.formats import writers
from tests.weights.formats.gguf_files import write_gguf
from tests.weights.formats.writers import RELEASED, Tensors, prefixed

BUNDLED = locate("embedded", 1, {})
FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# A weight file: its place, its tensors and the text in its header.
File = tuple[str, Tensors, dict[str, str]]


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The bundled networks with their weights as stored."""
    loaded = (checkpoints.NETWORKS[name](BUNDLED, None, "cpu") for name in checkpoints.NETWORKS)
    dit, vae, text_encoder, image_encoder, speech_encoder = loaded
    return Networks(dit, vae, text_encoder, image_encoder, speech_encoder)


def files(writer_of: Mapping[str, Callable[[Networks], Tensors]], networks: Networks) -> list[File]:
    return [(f"{role}/model.safetensors", writer_of[role](networks), {}) for role in RELEASED]


def single_files(networks: Networks) -> list[File]:
    return files(RELEASED, networks)


def comfyui(networks: Networks) -> list[File]:
    writer_of = RELEASED | {"adapter": writers.LAYOUTS["adapter"]["WanVideoWrapper"]}
    writer_of["text_encoder"] = lambda n: without_tokenizer(writers.text_of_comfyui(n))
    writer_of["image_encoder"] = writers.image_of_transformers
    found = {place: (tensors, header) for place, tensors, header in files(writer_of, networks)}
    tensors, header = found["transformer/model.safetensors"]
    found["transformer/model.safetensors"] = (prefixed("model.diffusion_model.", tensors), header)
    return [(place, *content) for place, content in found.items()]


def without_tokenizer(tensors: Tensors) -> Tensors:
    """The tokenizer lies beside the file here."""
    return {name: tensor for name, tensor in tensors.items() if name != "spiece_model"}


def merged(networks: Networks) -> list[File]:
    both = RELEASED["transformer"](networks) | RELEASED["adapter"](networks)
    others = [file for file in single_files(networks) if not file[0].startswith(("transformer", "adapter"))]
    return [("transformer/model.safetensors", prefixed("diffusion_model.", both), {}), *others]


def diffusers(networks: Networks) -> list[File]:
    """Shards, and encoders as transformers saves them."""
    writer_of = RELEASED | {
        "vae": writers.autoencoder_of_diffusers,
        "text_encoder": writers.text_of_transformers,
        "image_encoder": writers.image_of_transformers,
        "speech_encoder": writers.speech_of_transformers,
    }
    others = [file for file in files(writer_of, networks) if not file[0].startswith("transformer")]
    tensors = writers.transformer_of_diffusers(networks)
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    stem = "transformer/diffusion_pytorch_model-0000"
    shards = [
        (f"{stem}{number}-of-00002.safetensors", {name: tensors[name] for name in half}, {})
        for number, half in enumerate(halves, start=1)
    ]
    return [*shards, *others]


def pickled(networks: Networks) -> list[File]:
    return [(place.replace(".safetensors", ".pth"), *rest) for place, *rest in single_files(networks)]


LOSSLESS = (single_files, comfyui, merged, diffusers, pickled)


def of_blocks(store: Callable[[str, Tensor], Tensors]) -> Callable[[Networks], list[File]]:
    """A writer that stores the matrices of the transformer's blocks in a way of its own."""

    def write(networks: Networks) -> list[File]:
        matrices = {
            f"{name}.weight"
            for name, layer in networks.dit.named_modules()
            if isinstance(layer, nn.Linear) and name.startswith("blocks.")
        }
        found: list[File] = []
        for place, tensors, header in single_files(networks):
            stored: Tensors = {}
            for name, tensor in tensors.items():
                is_matrix = place.startswith(("transformer", "adapter")) and name in matrices
                stored |= store(name.removesuffix(".weight"), tensor.float()) if is_matrix else {name: tensor}
            found.append((place, stored, header))
        return found

    return write


def raw(stored: torch.dtype) -> Callable[[str, Tensor], Tensors]:
    return lambda layer, weight: {f"{layer}.weight": weight.to(stored)}


def scaled(layer: str, weight: Tensor) -> Tensors:
    scale = weight.abs().max() / torch.finfo(FP8).max
    return {f"{layer}.weight": (weight / scale).to(FP8), f"{layer}.scale_weight": scale}


def by_rows(layer: str, weight: Tensor) -> Tensors:
    data, scale = quantize_rows(weight, FP8)
    return {f"{layer}.weight": data, f"{layer}.weight_scale": scale}


def quanto(networks: Networks) -> list[File]:
    """Two files with the maps of their layers in the header."""

    def store(layer: str, weight: Tensor) -> Tensors:
        data, scale = quantize_rows(weight, torch.int8)
        return {f"{layer}.weight._data": data, f"{layer}.weight._scale": scale}

    found: list[File] = []
    for place, tensors, header in of_blocks(store)(networks):
        suffix = ".weight._data"
        kinds = {n.removesuffix(suffix): {"weights": "qint8"} for n in tensors if n.endswith(suffix)}
        if kinds:
            text = base64.b64encode(json.dumps(kinds).encode()).decode()
            header = {"quantization_format": "quanto", "quantization_map_base64": text}
        found.append((place, tensors, header))
    return found


def gguf(networks: Networks) -> list[File]:
    """Transformer and text encoder as city96 has them; matrices that fill no blocks are in float32."""
    found: list[File] = []
    for place, tensors, header in single_files(networks):
        if place.startswith("text_encoder"):
            tensors = writers.text_of_llama_cpp(networks)
        is_quantised = place.startswith(("transformer", "text_encoder"))
        found.append((place.replace(".safetensors", ".gguf") if is_quantised else place, tensors, header))
    return found


# The largest relative error of a matrix is a step of the type over √12. The step is relative to the smallest
# number of the same exponent; in int8, to the standard deviation of normal rows with peaks of five.
STEPS = {FP8: 2**-3, E5M2: 2**-2, torch.int8: 5 / 127}
QUANTISED = {
    "raw fp8": (of_blocks(raw(FP8)), FP8),
    "raw fp8 (e5m2)": (of_blocks(raw(E5M2)), E5M2),
    "scaled fp8": (of_blocks(scaled), FP8),
    "fp8 by rows": (of_blocks(by_rows), FP8),
    "quanto int8": (quanto, torch.int8),
    "GGUF Q8_0": (gguf, torch.int8),
}


def write(folder: Path, written: list[File]) -> Path:
    """A folder of weight files, each beside the fields that its tensors do not show."""
    for place, tensors, header in written:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        owned = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        if path.suffix == ".gguf":
            write_gguf(path, owned, "Q8_0")
        elif path.suffix == ".pth":
            torch.save(owned, path)
        else:
            save_file(owned, path, header)
    for role in ("vae", "image_encoder"):
        (source,) = BUNDLED.of_role(role)
        (model,) = (folder / role).glob("model.*")
        shutil.copy(source.with_suffix(".json"), model.with_suffix(".json"))
    shutil.copy(EMBEDDED_WEIGHTS / "ckpt_dir" / "config.json", folder / "transformer")
    shutil.copy(EMBEDDED_WEIGHTS / "wav2vec_dir" / "config.json", folder / "speech_encoder")
    shutil.copytree(BUNDLED.tokenizer, folder / "text_encoder", dirs_exist_ok=True)
    return folder


def frames(run: Path, **fields: str) -> np.ndarray:
    request = GenerationParams(
        audio_path="sample:recording",
        image_path="sample:portrait",
        prompt="a calm presenter",
        frame_size="64x64",
        chunk_frames=9,
        motion_frame=5,
        max_frames=5,
        diffusion_steps=1,
        text_guide_scale=1.0,
        audio_guide_scale=1.0,
        sample_shift=3.0,
        seam_frames=0,
        trim_last_chunk=True,
        **fields,
    )
    result = generate(request, run, show_progress=False)
    return np.concatenate([np.asarray(part) for part in read_frames(result.video_path)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> np.ndarray:
    return frames(tmp_path_factory.mktemp("plain") / "run", checkpoint="embedded")


@pytest.mark.parametrize("layout", LOSSLESS, ids=lambda layout: layout.__name__)
def test_where_nothing_is_lost_the_frames_are_the_same(networks, plain, tmp_path, layout):
    folder = write(tmp_path / "weights", layout(networks))
    assert np.array_equal(frames(tmp_path / "run", weights=str(folder)), plain)


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_have_the_error_of_their_type(networks, plain, tmp_path, kind):
    writer, stored = QUANTISED[kind]
    folder = write(tmp_path / "weights", writer(networks))
    dit = checkpoints.load_dit(locate("released", 1, {"weights": str(folder)}), torch.float32, "cpu")
    errors = {}
    for name, layer in dit.named_modules():
        if hasattr(layer, "dequantized"):
            weight = networks.dit.get_submodule(name).weight.float()
            errors[name] = float((layer.dequantized() - weight).norm() / weight.norm())
    assert len(errors) > 20
    assert 1e-3 < min(errors.values()) <= max(errors.values()) < STEPS[stored] / 12**0.5
    made = frames(tmp_path / "run", weights=str(folder))
    assert made.shape == plain.shape
    assert np.abs(made.astype(float) - plain).mean() < 2, "levels of 255"
