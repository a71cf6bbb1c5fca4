"""Predicts the memory that a request needs before anything is loaded."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from talkinghead_lab.foundation.devices import (
    GIB,
    available_bytes,
    compute_type,
    decode_type,
    pick_device,
)
from talkinghead_lab.media.inputs import read_inputs
from talkinghead_lab.offload.requirements import Requirements, requirements
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.quantization import quantize_linears, stored_type


def networks_without_weights(params: GenerationParams, device: torch.device) -> dict[str, nn.Module]:
    """The networks as a request would load them, on the meta device: no weight is read.

    Raises:
        CheckpointError: what the request names is missing or cannot be used.
    """
    files, compute = checkpoints.locate(params), compute_type(params.precision, device)
    networks: dict[str, nn.Module] = {
        "transformer": checkpoints.load_dit(files, compute, "meta"),
        "video autoencoder": checkpoints.load_vae(files, torch.float32, "meta").set_decoder_dtype(
            decode_type(compute, device)
        ),
        "text encoder": checkpoints.load_text_encoder(files, compute, "meta"),
        "image encoder": checkpoints.load_image_encoder(files, compute, "meta"),
        "speech encoder": checkpoints.load_speech_encoder(files, torch.float32, "meta"),
    }
    stored = stored_type(params.precision, device)
    if stored is not None and checkpoints.quantization_map(files.infinitetalk) is None:
        quantize_linears(networks["transformer"].get_submodule("blocks"), stored)
    return networks


def planned(params: GenerationParams, frame_size: tuple[int, int], seconds: float) -> Requirements:
    """The requirements of a request before anything of it is loaded."""
    device = pick_device(params.device)
    networks = networks_without_weights(params, device)
    return requirements(networks, device, params, frame_size, seconds)


def planned_for(params: GenerationParams) -> Requirements:
    inputs = read_inputs(params)
    return planned(params, inputs.frame_size, inputs.seconds)


@dataclass(frozen=True)
class Plan:
    """The memory that a request will need, in GiB.

    Args:
        device: what it is to run on.
        weights_gib: of each network, as loaded.
        work_gib: what the stage that takes most takes besides, libraries and driver included.
        needed_gib: on the device: with everything resident, or within `vram_budget_gib` at the least.
        smallest_budget_gib: the smallest `vram_budget_gib` that runs.
        stages_gib: what each stage needs at the least, when networks visit in turn and blocks stream.
        free_gib: what this process can have of the device now.
        measured_on: the machine whose profiles the model was fitted to; None: estimates, not calibrated.
        fits: None where only estimates say that it does.
    """

    device: str
    weights_gib: dict[str, float]
    work_gib: float
    needed_gib: float
    smallest_budget_gib: float
    stages_gib: dict[str, float]
    free_gib: float
    measured_on: str | None
    fits: bool | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "may fit: not calibrated for this device"}
        rows = {f"weights, {name}": size for name, size in self.weights_gib.items()}
        rows |= {"work": self.work_gib, "needed": self.needed_gib}
        rows |= {
            "smallest vram_budget_gib": self.smallest_budget_gib,
            f"free on {self.device}": self.free_gib,
        }
        source = f"fitted on {self.measured_on}" if self.measured_on else "estimates, not calibrated"
        return "\n".join(
            [verdict[self.fits], *(f"{row}: {gib:.2f} GiB" for row, gib in rows.items()), source]
        )


def plan(params: GenerationParams) -> Plan:
    """Predict the memory of a request before it runs; no weight is read.

    Raises:
        InvalidRequest: there is no such GPU.
        MediaError, CheckpointError: what the request names is missing or cannot be used.
    """
    device, inputs = pick_device(params.device), read_inputs(params)
    needs = planned(params, inputs.frame_size, inputs.seconds)
    # A budget spares a GPU its memory; on a CPU the streamed copies are in the same memory.
    offloaded = params.vram_budget_gib is not None and device.type == "cuda"
    needed, free = needs.smallest if offloaded else needs.resident, available_bytes(device)
    allowed = min(free, params.vram_budget_gib * GIB) if offloaded and params.vram_budget_gib else free
    return Plan(
        device=str(device),
        weights_gib={name: size / GIB for name, size in needs.weights.items()},
        work_gib=(needs.outside + needs.work) / GIB,
        needed_gib=needed / GIB,
        smallest_budget_gib=needs.smallest / GIB,
        stages_gib={stage: need.smallest / GIB for stage, need in needs.needs.items()},
        free_gib=free / GIB,
        measured_on=needs.measured_on,
        fits=False if needed > allowed else True if needs.measured_on else None,
    )
