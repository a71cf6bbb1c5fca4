"""The bundled model, written as other programs write it, makes the video that it makes as it is bundled."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from talkinghead_lab.media.video import read_frames
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS, locate
from talkinghead_lab.weights.writing import Networks
from tests.weights.formats import writers
from tests.weights.formats.gguf_files import write_gguf
from tests.weights.formats.writers import RELEASED, Tensors, prefixed
from tests.weights.quantized_files import FORMS

BUNDLED = locate("embedded", 1, {})
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


def gguf(networks: Networks) -> list[File]:
    """Transformer and text encoder as city96 has them; matrices that fill no blocks are in float32."""
    found: list[File] = []
    for place, tensors, header in single_files(networks):
        if place.startswith("text_encoder"):
            tensors = writers.text_of_llama_cpp(networks)
        is_quantised = place.startswith(("transformer", "text_encoder"))
        found.append((place.replace(".safetensors", ".gguf") if is_quantised else place, tensors, header))
    return found


def fp8(networks: Networks) -> list[File]:
    """Transformer and adapter with one scale for a matrix."""
    store = FORMS["scaled e4m3"][0]
    return [
        (place, *store(tensors)) if place.startswith(("transformer", "adapter")) else (place, tensors, header)
        for place, tensors, header in single_files(networks)
    ]


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


@pytest.mark.parametrize("layout", [fp8, gguf], ids=lambda layout: layout.__name__)
def test_quantised_files_make_nearly_the_same_frames(networks, plain, tmp_path, layout):
    """`test_quantized_files` bounds the errors of all stored types."""
    folder = write(tmp_path / "weights", layout(networks))
    made = frames(tmp_path / "run", weights=str(folder))
    assert made.shape == plain.shape
    assert 0 < np.abs(made.astype(float) - plain).mean() < 2, "levels of 255"
