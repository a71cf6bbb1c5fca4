"""Write networks to disk in the layout of the released checkpoint; see `checkpoints`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import text as text_encoder
from talkinghead_lab.models.encoders.image import ImageEncoder
from talkinghead_lab.models.encoders.speech import SpeechEncoder
from talkinghead_lab.models.encoders.text import PADDING, TextEncoder
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.weights import locating

CLOSING, UNKNOWN = "</s>", "<unk>"
ADAPTER_PARTS = ("audio", "norm_x")  # parts of the names that belong to the InfiniteTalk file
CONFIG_FIELDS = (  # of the released config.json; tensor shapes give the other sizes
    *("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim"),
    *("freq_dim", "text_dim", "text_len", "eps"),
)


@dataclass
class Networks:
    """The five networks of a checkpoint."""

    dit: DiT
    vae: VAE
    text_encoder: TextEncoder
    image_encoder: ImageEncoder
    speech_encoder: SpeechEncoder

    def modules(self) -> dict[str, nn.Module]:
        """The networks by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> "Networks":
        """Move all networks to a device."""
        for module in self.modules().values():
            module.to(device)
        return self


def save_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write a weight file with floating-point tensors converted to `dtype`."""
    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in sorted(tensors.items())
    }
    save_file(stored, path)


def write_checkpoint(
    folder: Path,
    networks: Networks,
    vocabulary: Sequence[str],
    dtype: torch.dtype = torch.float16,
    save: Callable[[Path, Mapping[str, Tensor], torch.dtype], None] = save_tensors,
) -> None:
    """Write networks and a word-level tokenizer in the released layout.

    Args:
        folder: gets `ckpt_dir`, `wav2vec_dir` and `infinitetalk_dir`.
        networks: what to write.
        vocabulary: words of the tokenizer, see `write_tokenizer`.
        dtype: the stored type of floating-point tensors.
        save: writes one weight file.
    """
    wan, speech, adapter = (folder / name for name in locating.RELEASED_REPOSITORIES)
    for part in (wan / locating.TOKENIZER, speech, adapter):
        part.mkdir(parents=True, exist_ok=True)
    dit = networks.dit.state_dict()
    of_adapter = {name for name in dit if any(part in name for part in ADAPTER_PARTS)}
    save(wan / f"{locating.TRANSFORMER}.safetensors", without(dit, of_adapter), dtype)
    save(adapter / "infinitetalk.safetensors", {name: dit[name] for name in of_adapter}, dtype)
    _write_json(wan / "config.json", {"model_type": "i2v"} | _config_fields(networks.dit.config))
    save(wan / f"{locating.VAE}.safetensors", networks.vae.state_dict(), dtype)
    statistics = {name: getattr(networks.vae.config, name) for name in ("latent_mean", "latent_std")}
    _write_json(wan / f"{locating.VAE}.json", statistics)
    save(wan / f"{locating.TEXT_ENCODER}.safetensors", released_text(networks.text_encoder), dtype)
    save(wan / f"{locating.IMAGE_ENCODER}.safetensors", released_image(networks.image_encoder), dtype)
    heads = {"num_heads": networks.image_encoder.config.num_heads}
    _write_json(wan / f"{locating.IMAGE_ENCODER}.json", heads)
    save(speech / "model.safetensors", released_speech(networks.speech_encoder), dtype)
    _write_json(speech / "config.json", {"model_type": "wav2vec2"} | asdict(networks.speech_encoder.config))
    write_tokenizer(wan / locating.TOKENIZER, vocabulary)


def without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors whose names are not in `names`."""
    left_out = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _config_fields(config: DiTConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in CONFIG_FIELDS}


def _own_name(from_released: Callable[..., dict[str, Tensor]], name: str, config: object) -> str:
    """Our name for a released one."""
    return next(iter(from_released({name: torch.empty(0)}, config)))


def released_text(encoder: TextEncoder) -> dict[str, Tensor]:
    """The text encoder's tensors under their released names."""
    layer = ["norm1", "norm2", "pos_embedding.embedding", "ffn.gate.0", "ffn.fc1", "ffn.fc2"]
    layer += [f"attn.{part}" for part in "qkvo"]
    names = ["token_embedding.weight", "norm.weight"]
    names += [f"blocks.{i}.{part}.weight" for i in range(encoder.config.num_layers) for part in layer]
    state = encoder.state_dict()
    return {name: state[_own_name(text_encoder.from_released, name, encoder.config)] for name in names}


def released_image(encoder: ImageEncoder) -> dict[str, Tensor]:
    """The image encoder's tensors under their released names, with q, k and v fused.

    The released file counts one more block than is used, so one tensor of that block is written too.
    """
    config, state = encoder.config, encoder.state_dict()
    tensors = {
        "visual.cls_embedding": state["vision.embeddings.class_embedding"].view(1, 1, -1),
        "visual.pos_embedding": state["vision.embeddings.position_embedding.weight"][None],
        f"visual.transformer.{config.num_layers - 1}.norm1.weight": torch.ones(config.dim),
    }
    renamed = ["visual.patch_embedding.weight", "visual.pre_norm.weight", "visual.pre_norm.bias"]
    for i in range(config.num_layers - 1):
        block = f"visual.transformer.{i}"
        parts = ("norm1", "attn.proj", "norm2", "mlp.0", "mlp.2")
        renamed += [f"{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
        attention = f"vision.encoder.layers.{i}.self_attn"
        for kind in ("weight", "bias"):
            fused = [state[f"{attention}.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}.attn.to_qkv.{kind}"] = torch.cat(fused)
    for name in renamed:
        tensors[name] = state[_own_name(image_encoder.from_released, name, config)]
    return tensors


def released_speech(encoder: SpeechEncoder) -> dict[str, Tensor]:
    """The speech encoder's tensors under the names of a wav2vec2 file."""
    norm = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for ours, released in norm.items():
            name = name.replace(ours, released)
        tensors[name] = tensor
    return tensors


def write_tokenizer(folder: Path, vocabulary: Sequence[str]) -> None:
    """Write a tokenizer of lower-case words that drops punctuation and ends each text with `CLOSING`.

    Args:
        folder: exists.
        vocabulary: words by token id; it includes `PADDING`, `CLOSING` and `UNKNOWN`.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.Replace(tokenizers.Regex("[^a-z']+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    closing = [(CLOSING, numbers[CLOSING])]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {CLOSING}", special_tokens=closing
    )
    tokenizer.add_special_tokens([PADDING, CLOSING, UNKNOWN])
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING}
    _write_json(folder / "tokenizer_config.json", fields | {"eos_token": CLOSING, "unk_token": UNKNOWN})


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
