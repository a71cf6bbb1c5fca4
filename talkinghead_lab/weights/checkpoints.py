"""Build the networks of a checkpoint from its files; `locating` finds them."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import speech as speech_encoder
from talkinghead_lab.models.encoders import text as text_encoder
from talkinghead_lab.models.vae import model as vae
from talkinghead_lab.weights.formats.containers import Stored
from talkinghead_lab.weights.formats.network_file import NetworkFile, network_content, read_network
from talkinghead_lab.weights.locating import CheckpointFiles
from talkinghead_lab.weights.reading import load_strict, shapes_of
from talkinghead_lab.weights.released_configs import config_fields_for

Network = TypeVar("Network", bound=nn.Module)
Loader = Callable[[CheckpointFiles, torch.dtype | None, torch.device | str], Network]


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
                received=str(files),
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


def transformer_files(files: CheckpointFiles) -> list[NetworkFile]:
    """The transformer and its adapter, as stored: two files, or one that holds both."""
    return [read_network(*paths) for paths in _transformer_paths(files)]


def _transformer_paths(files: CheckpointFiles) -> list[tuple[Path, ...]]:
    return list(dict.fromkeys(files.of_role(role) for role in ("transformer", "adapter")))


def transformer_width(files: CheckpointFiles) -> int | None:
    """The transformer's width, without reading tensors; None where the file does not tell."""
    return network_content(*_transformer_paths(files)[0]).rows.get("transformer")


def stored_types(files: CheckpointFiles) -> dict[str, int]:
    """How many tensors of the transformer and its adapter are stored in each type; reads no matrix."""
    counts: Counter[str] = Counter()
    for paths in _transformer_paths(files):
        counts.update(network_content(*paths).stored_as)
    return dict(sorted(counts.items()))


@_explained
def load_dit(files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str) -> DiT:
    """Load the transformer with its adapter. Without a `dtype`, weights keep their stored type."""
    transformer, *adapters = transformer_files(files)
    tensors: dict[str, Stored] = dict(transformer.tensors)
    for adapter in adapters:
        if twice := sorted(tensors.keys() & adapter.tensors.keys()):
            raise CheckpointError(
                f"transformer and adapter both hold {len(twice)} tensors, {twice[0]} is one",
                received=f"{transformer.paths[0]} and {adapter.paths[0]}",
                remedy="One file holds both networks: name no other file beside it.",
            )
        tensors |= adapter.tensors
    fields = config_fields_for("transformer", transformer, files.transformer_config.parent)
    config = DiTConfig.from_tensors(shapes_of(tensors), fields)
    return _build(DiT, config, tensors, f"transformer ({files.of_role('adapter')[0].name})", dtype, device)


@_explained
def load_vae(files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str) -> vae.VAE:
    """Load the video autoencoder."""
    network = read_network(*files.of_role("vae"))
    tensors = network.plain
    config = vae.VAEConfig.from_tensors(shapes_of(tensors), config_fields_for("vae", network))
    return _build(vae.VAE, config, vae.from_released(tensors, config), network.paths[0].name, dtype, device)


@_explained
def load_image_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> image_encoder.ImageEncoder:
    """Load the image tower of CLIP."""
    network = read_network(*files.of_role("image_encoder"))
    tensors = network.plain
    config = image_encoder.ImageEncoderConfig.from_tensors(
        shapes_of(tensors), config_fields_for("image_encoder", network)
    )
    named = image_encoder.from_released(tensors, config)
    return _build(image_encoder.ImageEncoder, config, named, network.paths[0].name, dtype, device)


@_explained
def load_text_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> text_encoder.TextEncoder:
    """Load umT5; the quantised file, if there is one next to a quantised transformer."""
    network = read_network(*files.of_role("text_encoder"))
    tensors = network.tensors
    config = text_encoder.TextEncoderConfig.from_tensors(
        shapes_of(tensors), config_fields_for("text_encoder", network)
    )
    named = text_encoder.from_released(tensors, config)
    return _build(text_encoder.TextEncoder, config, named, network.paths[0].name, dtype, device)


def load_tokenizer(files: CheckpointFiles, text_len: int) -> text_encoder.Tokenizer:
    """Load the text encoder's tokenizer."""
    return text_encoder.Tokenizer(files.tokenizer, text_len)


@_explained
def load_speech_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> speech_encoder.SpeechEncoder:
    """Load wav2vec2."""
    network = read_network(*files.of_role("speech_encoder"))
    tensors = network.plain
    fields = config_fields_for("speech_encoder", network)
    config = speech_encoder.SpeechEncoderConfig.from_tensors(shapes_of(tensors), fields)
    named = speech_encoder.from_released(tensors, config)
    return _build(speech_encoder.SpeechEncoder, config, named, network.paths[0].name, dtype, device)


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
    return NETWORKS[name](files, loaded_type(name, compute), device)


def loaded_type(name: str, compute: torch.dtype) -> torch.dtype:
    """The type that one of `NETWORKS` is loaded in."""
    return torch.float32 if name in FLOAT32_NETWORKS else compute
