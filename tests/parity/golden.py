"""Reads a golden folder: outputs of the reference, and the salt of the random inputs that led to them."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from talkinghead_lab.weights import locating
from talkinghead_lab.weights.locating import CheckpointFiles

FOLDER = Path(os.environ.get("TALKINGHEAD_GOLDEN") or Path(__file__).parents[1] / "golden")
SALT = json.loads((FOLDER / "golden.json").read_text())["salt"]

# (case, relative error, bound) of every comparison, for the table at the end of the test run.
comparisons: list[tuple[str, float, float]] = []


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    """The stored outputs of a case and its JSON file."""
    return load_file(FOLDER / f"{name}.safetensors"), json.loads((FOLDER / f"{name}.json").read_text())


def random_state(name: str) -> np.random.RandomState:
    """The random stream of a name (without the salt)."""
    return np.random.RandomState(zlib.crc32(f"{SALT}/{name}".encode()))


def seeded(name: str, shape: Sequence[int], scale: float = 1.0) -> Tensor:
    """Normally distributed float32 values from the random stream of a name."""
    return torch.from_numpy((random_state(name).standard_normal(shape) * scale).astype(np.float32))


def parameters(model: str, shapes: Mapping[str, Sequence[int]], scale: float = 0.05) -> dict[str, Tensor]:
    """Random parameters of a model; norm weights have mean 1."""
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = seeded(f"{model}/{name}", shape, scale)
        if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
            tensors[name] += 1
    return tensors


def relative_error(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ in double precision."""
    assert out.shape == reference.shape, (
        f"shape {tuple(out.shape)}, but {tuple(reference.shape)} in the reference"
    )
    reference = reference.double()
    return ((out.double() - reference).norm() / reference.norm()).item()


def report(case: str, error: float, bound: float) -> None:
    """Record a comparison for the final table and check its bound."""
    comparisons.append((case, error, bound))
    assert error <= bound, f"{case}: relative error {error:.2e} is above {bound:.0e}"


def compare(case: str, out: Tensor, reference: Tensor, bound: float) -> None:
    report(case, relative_error(out.float(), reference.float()), bound)


def write_checkpoint(folder: Path) -> CheckpointFiles:
    """Write transformer, adapter, VAE and image encoder of this folder under their released file names."""
    dit, vae, clip = (load(name)[1] for name in ("dit", "vae", "clip"))
    wan, adapter = folder / "ckpt_dir", folder / "infinitetalk.safetensors"
    wan.mkdir(parents=True)
    weights = parameters("dit", dit["params"])
    adapter_names = {name for name in weights if "audio" in name or "norm_x" in name}
    save_file({name: weights[name] for name in adapter_names}, adapter)
    base = [name for name in weights if name not in adapter_names]
    for shard, names in enumerate((base[::2], base[1::2]), start=1):
        shard_file = wan / f"{locating.TRANSFORMER}-0000{shard}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, shard_file)
    (wan / "config.json").write_text(json.dumps(dit["config"] | dit["extra_config"]))
    torch.save(parameters("vae", vae["params"]), wan / f"{locating.VAE}.pth")
    image_encoder = parameters("clip", clip["params"], clip["weight_scale"])
    path = wan / f"{locating.IMAGE_ENCODER}.pth"
    torch.save({f"visual.{name}": tensor for name, tensor in image_encoder.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"num_heads": clip["config"]["num_heads"]}))
    return CheckpointFiles(wan, folder / "wav2vec_dir", adapter)
