"""The five networks of the bundled model: sizes, initial weights, and the released layout on disk."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders import image as image_encoder
from talkinghead_lab.models.encoders import text as text_encoder
from talkinghead_lab.models.encoders.image import ImageEncoder, ImageEncoderConfig
from talkinghead_lab.models.encoders.speech import SpeechEncoder, SpeechEncoderConfig
from talkinghead_lab.models.encoders.text import PADDING, TextEncoder, TextEncoderConfig
from talkinghead_lab.models.vae.model import VAE, VAEConfig
from talkinghead_lab.params import RELEASED_NEGATIVE_PROMPT
from talkinghead_lab.training import motion
from talkinghead_lab.weights import checkpoints

FRAME_SIZE = 160
TEXT_TOKENS = 64
# 1.5 times the released number: a small autoencoder needs them for sharp frames.
LATENT_CHANNELS = 24
CLOSING, UNKNOWN = "</s>", "<unk>"
ADAPTER_PARTS = ("audio", "norm_x")


@dataclass(frozen=True)
class Configs:
    """Sizes of the five networks."""

    dit: DiTConfig
    vae: VAEConfig
    text_encoder: TextEncoderConfig
    image_encoder: ImageEncoderConfig
    speech_encoder: SpeechEncoderConfig


@dataclass
class Networks:
    """The five networks. The image encoder omits the released last block, whose output nothing uses."""

    dit: DiT
    vae: VAE
    text_encoder: TextEncoder
    image_encoder: ImageEncoder
    speech_encoder: SpeechEncoder

    def modules(self) -> dict[str, nn.Module]:
        """The networks by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> "Networks":
        """Move all networks to a device, in place."""
        for module in self.modules().values():
            module.to(device)
        return self


def words(text: str) -> list[str]:
    """Split a text like the tokenizer: lower-case words without punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def vocabulary() -> list[str]:
    """The three special tokens, then every word of the captions and of the released negative prompt."""
    phrases = [
        *motion.SUBJECTS,
        *motion.VERBS,
        RELEASED_NEGATIVE_PROMPT,
        "a calm presenter speaks to the camera",
    ]
    for wordings in (motion.ACTIONS, motion.EXPRESSIONS):
        phrases += [phrase for group in wordings.values() for phrase in group] + list(wordings)
    known = sorted({word for phrase in phrases for word in words(phrase)})
    return [PADDING, CLOSING, UNKNOWN, *known]


def embedded_configs() -> Configs:
    """Sizes of the bundled model, chosen for the speed on two CPU cores that the README states."""
    speech = SpeechEncoderConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=512,
        conv_dim=(80,) * 7,
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=False,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=8,
    )
    image = ImageEncoderConfig(dim=128, num_layers=4, ffn_dim=256, patch_size=32, image_size=224, num_heads=4)
    text = TextEncoderConfig(len(vocabulary()), 64, 16, 4, 128, 2, 32)
    return Configs(
        dit=DiTConfig(
            dim=192,
            ffn_dim=768,
            num_heads=3,
            num_layers=8,
            in_dim=2 * LATENT_CHANNELS + FRAMES_PER_LATENT,
            out_dim=LATENT_CHANNELS,
            patch_size=(1, 2, 2),
            freq_dim=256,
            text_dim=text.dim,
            text_len=TEXT_TOKENS,
            image_dim=image.dim,
            audio_window=5,
            audio_features=speech.num_hidden_layers * speech.hidden_size,
            audio_hidden=256,
            audio_tokens=8,
            audio_dim=128,
            eps=1e-6,
        ),
        vae=VAEConfig(
            dim=16,
            z_dim=LATENT_CHANNELS,
            stage_dims=(16, 24, 64, 96),
            num_res_blocks=1,
            temporal_downsample=(False, True, True),
            latent_mean=(0.0,) * LATENT_CHANNELS,
            latent_std=(1.0,) * LATENT_CHANNELS,
        ),
        text_encoder=text,
        image_encoder=image,
        speech_encoder=speech,
    )


def build_untrained(seed: int, configs: Configs | None = None) -> Networks:
    """Initial weights, determined by the seed; leaves the global random state unchanged."""
    configs = configs or embedded_configs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(
            DiT(configs.dit),
            VAE(configs.vae),
            TextEncoder(configs.text_encoder),
            ImageEncoder(configs.image_encoder),
            SpeechEncoder(configs.speech_encoder),
        )
        _initialise_dit(networks.dit)
    return networks


def _initialise_dit(dit: DiT) -> None:
    """Apply Wan's initialisation, except that the head starts small instead of at zero."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (
        dit.text_embedding[0],
        dit.text_embedding[2],
        dit.time_embedding[0],
        dit.time_embedding[2],
    ):
        nn.init.normal_(linear.get_parameter("weight"), std=0.02)
    nn.init.normal_(dit.head.head.weight, std=0.02)
    for block in (*dit.blocks, dit.head):
        nn.init.normal_(block.get_parameter("modulation"), std=dit.config.dim**-0.5)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write a weight file, converting floating-point tensors to `dtype`."""
    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous().clone()
        for name, tensor in sorted(tensors.items())
    }
    save_file(stored, path)


def write_checkpoint(
    folder: Path,
    networks: Networks,
    dtype: torch.dtype = torch.float16,
    save: Callable[[Path, Mapping[str, Tensor], torch.dtype], None] = save_tensors,
) -> None:
    """Write the networks in the released layout (see `weights.checkpoints`).

    Args:
        folder: receives `ckpt_dir`, `wav2vec_dir` and `infinitetalk_dir`.
        dtype: of the stored floating-point tensors.
        save: writes one weight file.
    """
    wan, speech, adapter = (folder / name for name in checkpoints.RELEASED_REPOSITORIES)
    for part in (wan / checkpoints.TOKENIZER, speech, adapter):
        part.mkdir(parents=True, exist_ok=True)
    dit = networks.dit.state_dict()
    of_adapter = {name for name in dit if any(part in name for part in ADAPTER_PARTS)}
    save(wan / f"{checkpoints.TRANSFORMER}.safetensors", without(dit, of_adapter), dtype)
    save(adapter / "infinitetalk.safetensors", {name: dit[name] for name in of_adapter}, dtype)
    _write_json(wan / "config.json", {"model_type": "i2v"} | _dit_fields(networks.dit.config))
    save(wan / f"{checkpoints.VAE}.safetensors", networks.vae.state_dict(), dtype)
    statistics = {name: getattr(networks.vae.config, name) for name in ("latent_mean", "latent_std")}
    _write_json(wan / f"{checkpoints.VAE}.json", statistics)
    save(wan / f"{checkpoints.TEXT_ENCODER}.safetensors", released_text(networks.text_encoder), dtype)
    save(wan / f"{checkpoints.IMAGE_ENCODER}.safetensors", released_image(networks.image_encoder), dtype)
    heads = {"num_heads": networks.image_encoder.config.num_heads}
    _write_json(wan / f"{checkpoints.IMAGE_ENCODER}.json", heads)
    save(speech / "model.safetensors", released_speech(networks.speech_encoder), dtype)
    _write_json(speech / "config.json", {"model_type": "wav2vec2"} | asdict(networks.speech_encoder.config))
    write_tokenizer(wan / checkpoints.TOKENIZER)


def without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """All tensors except those in `names`."""
    left_out = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _dit_fields(config: DiTConfig) -> dict[str, Any]:
    names = (
        "dim",
        "ffn_dim",
        "num_heads",
        "num_layers",
        "in_dim",
        "out_dim",
        "freq_dim",
        "text_dim",
        "text_len",
    )
    return {name: getattr(config, name) for name in (*names, "eps")}


def _own_name(from_released: Callable[..., dict[str, Tensor]], name: str, config: object) -> str:
    """Name in this package of a tensor with a released name."""
    return next(iter(from_released({name: torch.empty(0)}, config)))


def released_text(encoder: TextEncoder) -> dict[str, Tensor]:
    """The text encoder's tensors under their released names."""
    layer = ["norm1", "norm2", "pos_embedding.embedding", "ffn.gate.0", "ffn.fc1", "ffn.fc2"]
    layer += [f"attn.{part}" for part in "qkvo"]
    names = ["token_embedding.weight", "norm.weight"]
    names += [f"blocks.{i}.{part}.weight" for i in range(encoder.config.num_layers) for part in layer]
    own = {
        name: next(iter(text_encoder.from_released({name: torch.empty(0)}, encoder.config))) for name in names
    }
    state = encoder.state_dict()
    return {name: state[own[name]] for name in names}


def released_image(encoder: ImageEncoder) -> dict[str, Tensor]:
    """The image encoder's tensors under their released names, with fused projections.

    The released file has a last block whose output nothing uses; one of its tensors marks its place here.
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
    """The speech encoder's tensors under the released wav2vec2 names."""
    norm = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for ours, released in norm.items():
            name = name.replace(ours, released)
        tensors[name] = tensor
    return tensors


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of lower-case words; it drops punctuation and appends a closing token."""
    numbers = {word: number for number, word in enumerate(vocabulary())}
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
