"""Find the files of a checkpoint and build its networks.

The embedded and the released checkpoint have the same layout:

    CKPT_DIR/           config.json, diffusion_pytorch_model*.safetensors, Wan2.1_VAE, models_t5_…,
                        models_clip_…, google/umt5-xxl/ (tokenizer)
    WAV2VEC_DIR/        config.json, model.safetensors or pytorch_model.bin
    INFINITETALK_DIR/   single/infinitetalk.safetensors, multi/infinitetalk.safetensors; or one file: the
                        adapter, or a complete quantised transformer with a .json map of the same stem

Weight files without a suffix above are `.safetensors` or `.pth`. A `.json` of the same stem may hold what
tensor shapes do not show (head counts, latent statistics).
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import speech as speech_encoder
from talkinghead_lab.models.encoders import text as text_encoder
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.models.vae import model as vae
from talkinghead_lab.weights import config_fields
from talkinghead_lab.weights.config_fields import checked
from talkinghead_lab.weights.formats.containers import Stored
from talkinghead_lab.weights.formats.json_files import read_json
from talkinghead_lab.weights.formats.network_file import NetworkFile, read_network
from talkinghead_lab.weights.formats.quanto import quanto_map
from talkinghead_lab.weights.reading import load_strict, shapes_of

Network = TypeVar("Network", bound=nn.Module)
Loader = Callable[["CheckpointFiles", torch.dtype | None, torch.device | str], Network]

EMBEDDED_WEIGHTS = EMBEDDED_FOLDER / "weights"
TRANSFORMER = "diffusion_pytorch_model"
VAE = "Wan2.1_VAE"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16"
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
SPEECH_PICKLE = "pytorch_model.bin"  # on the main branch of the speech encoder's repository
TOKENIZER = Path("google", "umt5-xxl")
RELEASED_REPOSITORIES = {
    "ckpt_dir": "Wan-AI/Wan2.1-I2V-14B-480P",
    "wav2vec_dir": "TencentGameMate/chinese-wav2vec2-base",
    "infinitetalk_dir": "MeiGen-AI/InfiniteTalk",
}


@dataclass(frozen=True)
class CheckpointFiles:
    """Paths of one checkpoint: the Wan2.1 folder, the wav2vec2 folder and the InfiniteTalk file."""

    wan: Path
    wav2vec2: Path
    infinitetalk: Path


def locate(checkpoint: str, speakers: int, folders: Mapping[str, str | None]) -> CheckpointFiles:
    """Find the folders and files of a checkpoint.

    Args:
        checkpoint: `embedded` or `released`.
        speakers: 1 or 2; each has an adapter of its own.
        folders: of the released checkpoint, by the keys of `RELEASED_REPOSITORIES`; None: read the
            environment variable of that name in capitals.

    Raises:
        CheckpointError: a folder is not named anywhere, or does not exist.
    """
    if checkpoint == "embedded":
        found = {name: EMBEDDED_WEIGHTS / name for name in RELEASED_REPOSITORIES}
    else:
        found = {name: _named_folder(name, folders.get(name)) for name in RELEASED_REPOSITORIES}
    for name, folder in found.items():
        if not folder.exists():
            raise CheckpointError(
                f"{name} does not exist",
                received=str(folder),
                remedy="Check the path; `python -m talkinghead_lab fetch FOLDER` downloads released weights.",
            )
    adapter = _adapter_file(found["infinitetalk_dir"], speakers)
    return CheckpointFiles(found["ckpt_dir"], found["wav2vec_dir"], adapter)


def _named_folder(field: str, value: str | None) -> Path:
    variable = field.upper()
    path = value or os.environ.get(variable)
    if not path:
        raise CheckpointError(
            f"the released checkpoint needs {field}",
            remedy=f"Set the parameter {field} or the variable {variable}. "
            "`python -m talkinghead_lab fetch FOLDER` downloads the released weights.",
        )
    return Path(path)


def _adapter_file(path: Path, speakers: int) -> Path:
    if path.is_file():
        return path
    kind = "single" if speakers == 1 else "multi"
    candidates = [path / kind / "infinitetalk.safetensors", path / "infinitetalk.safetensors"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"no InfiniteTalk weights for {speakers} speaker(s)",
        received=str(path),
        allowed=f"a folder with {kind}/infinitetalk.safetensors, or the file itself",
    )


def _shards(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in _shard_names(index)})
    else:
        files = sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        raise CheckpointError("no transformer weights", received=str(folder), allowed=f"{stem}*.safetensors")
    _check_shards_complete(files)
    return files


def _shard_names(index: Path) -> set[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError("the index of the shards has no `weight_map`", received=str(index))
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
            raise CheckpointError(
                f"the index {index} names no file of its folder",
                received=repr(name)[:80],
                allowed="names of files beside it",
            )
    return set(names.values())


def _check_shards_complete(files: list[Path]) -> None:
    counts = [re.search(r"-(\d+)-of-(\d+)\.", file.name) for file in files]
    if counts[0]:
        present, total = {int(c[1]) for c in counts if c}, int(counts[0][2])
        missing = sorted(set(range(1, total + 1)) - present)
        if missing:
            raise CheckpointError(
                f"shards {missing} of {total} are missing",
                received=str(files[0].parent),
                remedy="Download them.",
            )


def weight_files(files: CheckpointFiles) -> dict[str, Path]:
    """Every file that the loaders below read, by a name that does not depend on the checkpoint's location.

    Raises:
        CheckpointError: a weight file is missing.
    """
    wan = [*_shards(files.wan, TRANSFORMER), files.wan / "config.json"]
    wan += [_weights_file(files.wan, stem) for stem in (VAE, TEXT_ENCODER, IMAGE_ENCODER)]
    wan += [path for path in (files.wan / TOKENIZER).rglob("*") if path.is_file()]
    speech = [_weights_file(files.wav2vec2, "model", SPEECH_PICKLE), *files.wav2vec2.glob("*config.json")]
    quantised_text = files.infinitetalk.parent.glob("t5_*")
    named = {f"wan/{path.relative_to(files.wan)}": path for path in wan}
    named |= {f"wav2vec2/{path.name}": path for path in speech}
    named |= {f"infinitetalk/{path.name}": path for path in (files.infinitetalk, *quantised_text)}
    sidecars = {f"{name.rpartition('.')[0]}.json": path.with_suffix(".json") for name, path in named.items()}
    return dict(sorted((named | {name: path for name, path in sidecars.items() if path.is_file()}).items()))


def _weights_file(folder: Path, stem: str, *others: str) -> Path:
    for name in (f"{stem}.safetensors", f"{stem}.pth", *others):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        "no such weight file", received=str(folder / f"{stem}.pth"), allowed=".pth or .safetensors"
    )


def _sidecar(path: Path) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    return read_json(sidecar) if sidecar.is_file() else {}


def _sidecar_fields(path: Path, kind: type[config_fields.Fields]) -> Mapping[str, Any]:
    return checked(_sidecar(path), kind, path.with_suffix(".json"))


def _explained(load: Loader[Network]) -> Loader[Network]:
    """Have a loader report tensors and fields that contradict each other in a way it does not look for."""

    @wraps(load)
    def explained(files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str) -> Network:
        try:
            return load(files, dtype, device)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = load.__name__.removeprefix("load_").replace("_", " ")
            raise CheckpointError(
                f"no {what} can be built from these files ({type(error).__name__}: {error})",
                received=f"{files.wan}, {files.wav2vec2} and {files.infinitetalk}",
                remedy="Check that weights and .json files belong together.",
            ) from error

    return explained


def _build(
    network: Callable[[Any], Network],
    config: object,
    tensors: Mapping[str, Stored],
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Network:
    """Build a network on the meta device and load its weights."""
    with torch.device("meta"):
        model = network(config)
    load_strict(model, tensors, source, dtype, device)
    return model


def transformer_width(files: CheckpointFiles) -> int | None:
    """The transformer's width as config.json states it, without reading tensors; None where it does not."""
    width = read_json(files.wan / "config.json").get("dim")
    return width if isinstance(width, int) else None


def transformer_files(files: CheckpointFiles) -> list[NetworkFile]:
    """The transformer and its adapter, as stored: Wan2.1 and InfiniteTalk, or one file that holds both."""
    adapter = read_network(files.infinitetalk)
    if "transformer" in adapter.roles:
        return [adapter]
    return [read_network(*_shards(files.wan, TRANSFORMER)), adapter]


def is_quantized(files: CheckpointFiles) -> bool:
    """Whether the transformer's file holds quantised layers; reads no weight."""
    return any(
        isinstance(tensor, QuantizedLinear)
        for file in transformer_files(files)
        for tensor in file.tensors.values()
    )


@_explained
def load_dit(files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str) -> DiT:
    """Load the transformer with its adapter. Without a `dtype`, weights keep their stored type."""
    path = files.wan / "config.json"
    fields = checked(read_json(path), config_fields.TransformerFields, path)
    tensors: dict[str, Stored] = {}
    for file in transformer_files(files):
        tensors |= file.tensors
    config = DiTConfig.from_tensors(shapes_of(tensors), fields)
    return _build(DiT, config, tensors, f"transformer ({files.infinitetalk.name})", dtype, device)


@_explained
def load_vae(files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str) -> vae.VAE:
    """Load the video autoencoder."""
    path = _weights_file(files.wan, VAE)
    tensors = read_network(path).plain
    config = vae.VAEConfig.from_tensors(
        shapes_of(tensors), _sidecar_fields(path, config_fields.AutoencoderFields)
    )
    return _build(vae.VAE, config, vae.from_released(tensors, config), path.name, dtype, device)


@_explained
def load_image_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> image_encoder.ImageEncoder:
    """Load the image tower of CLIP."""
    path = _weights_file(files.wan, IMAGE_ENCODER)
    tensors = read_network(path).plain
    config = image_encoder.ImageEncoderConfig.from_tensors(
        shapes_of(tensors), _sidecar_fields(path, config_fields.ImageEncoderFields)
    )
    named = image_encoder.from_released(tensors, config)
    return _build(image_encoder.ImageEncoder, config, named, path.name, dtype, device)


@_explained
def load_text_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> text_encoder.TextEncoder:
    """Load umT5; the quantised file, if there is one next to a quantised transformer."""
    path = _text_encoder_file(files)
    tensors = read_network(path).tensors
    config = text_encoder.TextEncoderConfig.from_tensors(
        shapes_of(tensors), _sidecar_fields(path, config_fields.TextEncoderFields)
    )
    named = text_encoder.from_released(tensors, config)
    return _build(text_encoder.TextEncoder, config, named, path.name, dtype, device)


def _text_encoder_file(files: CheckpointFiles) -> Path:
    maps = sorted(files.infinitetalk.parent.glob("t5_map_*.json"))
    if maps and quanto_map(files.infinitetalk) is not None:
        return maps[0].with_name(maps[0].name.replace("t5_map_", "t5_")).with_suffix(".safetensors")
    return _weights_file(files.wan, TEXT_ENCODER)


def load_tokenizer(files: CheckpointFiles, text_len: int) -> text_encoder.Tokenizer:
    """Load the text encoder's tokenizer."""
    return text_encoder.Tokenizer(files.wan / TOKENIZER, text_len)


@_explained
def load_speech_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> speech_encoder.SpeechEncoder:
    """Load wav2vec2."""
    path = _weights_file(files.wav2vec2, "model", SPEECH_PICKLE)
    tensors = read_network(path).plain
    fields = read_json(files.wav2vec2 / "config.json")
    preprocessor = files.wav2vec2 / "preprocessor_config.json"
    if preprocessor.is_file():
        fields |= read_json(preprocessor)
    checked(fields, config_fields.SpeechEncoderFields, files.wav2vec2 / "config.json")
    config = speech_encoder.SpeechEncoderConfig.from_tensors(shapes_of(tensors), fields)
    named = speech_encoder.from_released(tensors, config)
    return _build(speech_encoder.SpeechEncoder, config, named, path.name, dtype, device)


# How each network is loaded. Planning, loading and the inventory all walk this table.
NETWORKS: Mapping[str, Callable[[CheckpointFiles, torch.dtype | None, torch.device | str], nn.Module]] = {
    "transformer": load_dit,
    "video autoencoder": load_vae,
    "text encoder": load_text_encoder,
    "image encoder": load_image_encoder,
    "speech encoder": load_speech_encoder,
}
# As in the reference implementation; the others compute in the transformer's type.
FLOAT32_NETWORKS = ("video autoencoder", "speech encoder")


def load_network(
    name: str, files: CheckpointFiles, compute: torch.dtype, device: torch.device | str
) -> nn.Module:
    """Load one of `NETWORKS` in its own type, or in `compute`. On the device `meta` no weight is read.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit the network.
    """
    return NETWORKS[name](files, torch.float32 if name in FLOAT32_NETWORKS else compute, device)
