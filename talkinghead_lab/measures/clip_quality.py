"""How good CLIP takes the pictures to be, whose weights the user supplies."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from talkinghead_lab.errors import CheckpointError, TalkingHeadError
from talkinghead_lab.measures.given_weights import CLIP
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import load_strict

PROMPTS = ("Good photo.", "Bad photo.")
MEAN, DEVIATION = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of CLIP's pixels


def clip_quality(frames: Sequence[Image.Image]) -> Measure:
    """Mean probability that CLIP calls a frame "Good photo.", not "Bad photo." (unit 1, higher is better).

    CLIP-IQA (Wang et al. 2023) with CLIP's ViT-L/14 in place of its ResNet-50 without positional embedding.
    Of each frame, the square in the middle counts.
    """
    if not frames:
        return Measure.of("clip_quality", None, "the video has no frames")
    try:
        found = good_photo(CLIP.path(), frames)
    except TalkingHeadError as error:
        return Measure.of("clip_quality", None, str(error))
    return Measure.of("clip_quality", found.mean().item())


@torch.inference_mode()
def good_photo(path: Path, frames: Sequence[Image.Image]) -> Tensor:
    """The probability of each frame, [F].

    Args:
        path: CLIP's model.safetensors; its configuration and tokenizer lie beside it.
        frames: RGB.

    Raises:
        CheckpointError: they do not, or are of another network.
    """
    network, prompts = _clip(path)
    size = network.config.vision_config.image_size
    # one by one, so that the value does not depend on the batch
    logits = [
        network(pixel_values=clip_input(frame, size), **prompts).logits_per_image[0] for frame in frames
    ]
    return torch.stack(logits).softmax(1)[:, 0]


def clip_input(frame: Image.Image, size: int) -> Tensor:
    """The square in the middle of a picture, resized as CLIP does: [1, 3, size, size]."""
    square = ImageOps.fit(frame.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square, np.float32) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


@cache
def _clip(path: Path) -> tuple[Any, Any]:
    """The network, and both prompts as it takes them."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    folder = path.parent
    try:
        config = CLIPConfig.from_json_file(folder / "config.json")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"CLIP's configuration or tokenizer cannot be read ({str(error).splitlines()[0]})",
            received=str(folder),
            remedy=f"Download the whole folder: {CLIP.variable} names {CLIP.file}.",
        ) from None
    network = CLIPModel(config)
    # Older versions of the library stored what it now computes.
    tensors = {n: tensor for n, tensor in read_tensors(path).items() if not n.endswith(".position_ids")}
    load_strict(network, tensors, path.name, torch.float32, "cpu")
    return network.eval(), tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
