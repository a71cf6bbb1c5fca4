"""Predicts the memory that a request needs before anything is loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from talkinghead_lab.foundation.devices import GIB, available_bytes, capability, compute_type, decode_type
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.attention import EXACT_KERNELS
from talkinghead_lab.models.kernels.optional_kernels import OPTIONAL_KERNELS
from talkinghead_lab.models.vae.model import VAE
from talkinghead_lab.offload.requirements import (
    EAGER,
    EIGHT_BIT_ATTENTION,
    FP8,
    PLAIN,
    Requirements,
    requirements,
)
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import Resolved, resolve, settings_without_weights
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.sampling.step_cache import kept_tensors
from talkinghead_lab.weights.checkpoints import NETWORKS, load_network
from talkinghead_lab.weights.load_settings import LoadSettings
from talkinghead_lab.weights.locating import has_files
from talkinghead_lab.weights.quantization import quantize_linears
from talkinghead_lab.weights.released_sizes import released_network
from talkinghead_lab.weights.transformer import attached_loras

ABSENT = (
    "There are no weights yet: these are the sizes of the released ones, in 16 or 32 bits. "
    "`python -m talkinghead_lab fetch FOLDER` downloads them."
)
ON_GPU = (
    "on a GPU, where there is none here: {needed_gib:.2f} GiB, or from {smallest_budget_gib:.2f} GiB on with "
    "vram_budget_gib"
)


def networks_without_weights(settings: LoadSettings) -> dict[str, nn.Module]:
    """Build the networks as they would be loaded, on the meta device: no weight is read, but LoRAs are.

    Without a checkpoint, they have the released sizes.

    Raises:
        CheckpointError: the checkpoint is missing or cannot be used.
    """
    networks = {
        name: released_network(name, settings.compute)
        if settings.files.is_absent
        else load_network(name, settings.files, settings.compute, "meta")
        for name in NETWORKS
    }
    cast(VAE, networks["video autoencoder"]).set_decoder_dtype(settings.decode)
    if settings.storage is not None:
        quantize_linears(networks["transformer"].get_submodule("blocks"), settings.storage)
    attached_loras(
        cast(DiT, networks["transformer"]), replace(settings, device=torch.device("meta"))
    ).attach_all()
    return networks


def planned(resolved: Resolved) -> Requirements:
    """Compute the memory that a request needs before anything of it is loaded."""
    return needed_memory(networks_without_weights(resolved.networks), resolved)


def needed_memory(networks: Mapping[str, nn.Module], resolved: Resolved) -> Requirements:
    """Compute the memory that a request needs with some networks, by the names of `NETWORKS`."""
    return requirements(
        networks,
        resolved.networks.device,
        resolved.grid,
        resolved.seconds,
        kept_tensors=kept_tensors(resolved.sampling),
        voices=resolved.request.speakers,
        traits=memory_traits(resolved.networks),
    )


def memory_traits(settings: LoadSettings) -> frozenset[str]:
    """What the activation memory of sampling depends on; see `offload.requirements`."""
    # Where there is no GPU, the prediction is for one that has what the fused layers need.
    here = torch.cuda.is_available() and settings.device.type == "cuda"
    fused = OPTIONAL_KERNELS["fused_layers"]
    found = {
        EAGER: not settings.compiled,
        FP8: settings.fp8_matmuls,
        EIGHT_BIT_ATTENTION: settings.attention not in EXACT_KERNELS,
        PLAIN: here and fused.lacks(settings.device, capability(settings.device)) is not None,
    }
    return frozenset(trait for trait, holds in found.items() if holds)


@dataclass(frozen=True)
class Plan:
    """The memory that a request will need, in GiB.

    Args:
        device: where it is to run.
        weights_gib: of each network, as loaded.
        work_gib: peak of the largest stage beyond weights, libraries and driver included.
        needed_gib: on the device, with all weights resident; with a budget, the smallest that runs.
        smallest_budget_gib: the smallest `vram_budget_gib` that runs.
        stages_gib: minimum of each stage when blocks are streamed.
        free_gib: memory of the device that this process can use now.
        measured_on: the machine whose profiles the model was fitted to; None: uncalibrated estimates.
        fits: None where only estimates say so.
        settings: the effective values of settings whose defaults follow the checkpoint or the media.
        warnings: what the user should know before the run; see `Resolved`.
        on_gpu: for released weights where there is no GPU, `needed_gib` and `smallest_budget_gib` on one.
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
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()
    on_gpu: dict[str, float] | None = None

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
            [
                verdict[self.fits],
                *(f"{row}: {gib:.2f} GiB" for row, gib in rows.items()),
                source,
                *([] if self.on_gpu is None else [ON_GPU.format(**self.on_gpu)]),
                "settings: " + ", ".join(f"{name} {value}" for name, value in self.settings.items()),
                *(f"warning: {warning}" for warning in self.warnings),
            ]
        )


def plan(params: GenerationParams) -> Plan:
    """Predict the memory of a request before it runs; reads no weight.

    Where there are no released weights yet, it answers for those that `fetch` downloads.

    Raises:
        InvalidRequest: the device is not available.
        MediaError, CheckpointError: a file of the request is missing or cannot be used.
    """
    absent = params.checkpoint == "released" and not has_files("released", params.weight_sources)
    resolved = resolve(params, read_inputs(params), settings_without_weights(params) if absent else None)
    device, needs = resolved.networks.device, planned(resolved)
    # On a CPU, streamed copies are in the same memory as the weights, so a budget saves nothing.
    budget = resolved.budget if device.type == "cuda" else None
    needed, free = needs.resident if budget is None else needs.smallest, available_bytes(device)
    allowed = free if budget is None else min(free, budget)
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
        settings=_settings(resolved),
        warnings=resolved.warnings + ((ABSENT,) if absent else ()),
        on_gpu=_on_gpu(resolved) if params.checkpoint == "released" and params.device == "auto" else None,
    )


def _on_gpu(resolved: Resolved) -> dict[str, float] | None:
    """What the same request needs on a GPU; None where there is one."""
    if resolved.networks.device.type == "cuda":
        return None
    precision, gpu = resolved.request.precision, torch.device("cuda")
    compute = compute_type(precision, gpu)
    networks = replace(
        resolved.networks,
        device=gpu,
        compute=compute,
        decode=decode_type(compute, gpu),
        fp8_matmuls=precision == "fp8",
        compiled=resolved.request.compile_blocks is not False,
    )
    needs = planned(replace(resolved, networks=networks))
    return {"needed_gib": needs.resident / GIB, "smallest_budget_gib": needs.smallest / GIB}


def _settings(resolved: Resolved) -> dict[str, Any]:
    decided = resolved.to_json()
    names = ("frame_size", "frames", "chunks", "forward_passes", "skippable_passes", "sample_shift")
    asked = (
        "sampler",
        "diffusion_steps",
        "text_guide_scale",
        "audio_guide_scale",
        "seam_frames",
        "trim_last_chunk",
    )
    several = [name for name in ("shots", "prompts") if len(decided[name]) > 1]
    return {name: decided[name] for name in (*names, *several)} | {
        name: getattr(resolved.request, name) for name in asked
    }
