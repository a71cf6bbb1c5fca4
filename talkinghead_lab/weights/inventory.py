"""Report which networks of a checkpoint are present and complete."""

from collections.abc import Callable

import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights import checkpoints


def inventory(params: GenerationParams) -> list[dict[str, str]]:
    """List the networks of a checkpoint, a row each: its state and, if it is broken, the remedy.

    Checks the name and shape of every tensor and the length of every file; reads no weight.
    """
    try:
        files = checkpoints.locate(params)
    except CheckpointError as error:
        return [{"network": "all", "state": f"{error.problem}", "next": error.remedy or ""}]
    loaders: dict[str, Callable[[], object]] = {
        "transformer and audio adapter": lambda: checkpoints.load_dit(files, torch.bfloat16, "meta"),
        "video autoencoder": lambda: checkpoints.load_vae(files, torch.float32, "meta"),
        "text encoder": lambda: checkpoints.load_text_encoder(files, torch.bfloat16, "meta"),
        "tokenizer": lambda: checkpoints.load_tokenizer(files, 1),
        "image encoder": lambda: checkpoints.load_image_encoder(files, torch.bfloat16, "meta"),
        "speech encoder": lambda: checkpoints.load_speech_encoder(files, torch.float32, "meta"),
    }
    rows = []
    for network, load in loaders.items():
        try:
            load()
            rows.append({"network": network, "state": "complete", "next": ""})
        except CheckpointError as error:
            rows.append({"network": network, "state": str(error), "next": error.remedy or ""})
    return rows
