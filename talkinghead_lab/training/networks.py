"""The five networks of the bundled model: sizes and initial weights."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from talkinghead_lab.defaults import RELEASED_NEGATIVE_PROMPT
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT
from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.encoders.image import ImageEncoder, ImageEncoderConfig
from talkinghead_lab.models.encoders.speech import SpeechEncoder, SpeechEncoderConfig
from talkinghead_lab.models.encoders.text import PADDING, TextEncoder, TextEncoderConfig
from talkinghead_lab.models.vae.model import VAE, VAEConfig
from talkinghead_lab.training import motion
from talkinghead_lab.weights.writing import CLOSING, UNKNOWN, Networks

FRAME_SIZE = 160
TEXT_TOKENS = 64
# 1.5 times the released number: a small autoencoder needs them for sharp frames.
LATENT_CHANNELS = 24


@dataclass(frozen=True)
class Configs:
    """Sizes of the five networks."""

    dit: DiTConfig
    vae: VAEConfig
    text_encoder: TextEncoderConfig
    image_encoder: ImageEncoderConfig
    speech_encoder: SpeechEncoderConfig


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
