"""Report which networks of a checkpoint are present and complete."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.weights.checkpoints import NETWORKS, load_network, load_tokenizer
from talkinghead_lab.weights.locating import locate


def inventory(checkpoint: str, speakers: int, folders: Mapping[str, str | None]) -> list[dict[str, str]]:
    """List the networks of a checkpoint, a row each: its state and, if it is broken, the remedy.

    Checks the name and shape of every tensor and the length of every file; reads no weight. Arguments as for
    `locating.locate`.
    """
    try:
        files = locate(checkpoint, speakers, folders)
    except CheckpointError as error:
        return [{"network": "all", "state": f"{error.problem}", "next": error.remedy or ""}]
    loaders: dict[str, Callable[[], object]] = {
        name: partial(load_network, name, files, torch.bfloat16, "meta") for name in NETWORKS
    }
    loaders["tokenizer"] = partial(load_tokenizer, files, 1)
    rows = []
    for network, load in loaders.items():
        try:
            load()
            rows.append({"network": network, "state": "complete", "next": ""})
        except CheckpointError as error:
            rows.append({"network": network, "state": str(error), "next": error.remedy or ""})
    return rows
