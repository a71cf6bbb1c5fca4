"""Digests of the weight files and LoRAs of a request."""

from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights import checkpoints


def weight_digests(params: GenerationParams) -> dict[str, str]:
    """Digest of every file that loading the checkpoint reads, by its name within the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete.
    """
    files = checkpoints.weight_files(checkpoints.locate(params))
    return {name: known_sha256(path) for name, path in files.items()}


def lora_digests(params: GenerationParams) -> list[dict[str, object]]:
    """Path, scale and digest of each LoRA, in merge order."""
    return [
        {"path": lora.path, "scale": lora.scale, "sha256": known_sha256(local_file(lora.path))}
        for lora in params.loras
    ]
