"""Write transformer, adapter and LoRAs into one file, in the types that a precision runs with."""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from talkinghead_lab import __version__
from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.foundation.files import atomic_path, output_errors
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.weights.checkpoints import load_dit
from talkinghead_lab.weights.load_settings import LoraFile
from talkinghead_lab.weights.locating import CheckpointFiles
from talkinghead_lab.weights.lora.merge import apply_change, changes_of
from talkinghead_lab.weights.quantization import PRECISION_TYPES, quantize_linears
from talkinghead_lab.weights.reading import convert, replace_module
from talkinghead_lab.weights.safetensors_file import Entry, SafetensorsFile

COMPUTE = torch.bfloat16
BLOCKS = "blocks"
EIGHT_BITS = tuple(PRECISION_TYPES.values())


def convert_transformer(
    files: CheckpointFiles, loras: Sequence[LoraFile], precision: str, target: Path
) -> int:
    """Write the transformer with its adapter and merged LoRAs as one `.safetensors` file.

    One block at a time is in memory. Layers that are stored in the target's types already keep their bytes;
    others are dequantised first.

    Args:
        files: a transformer and its adapter.
        loras: merged in order; each has a strength.
        precision: `bf16`; or `fp8`, which quantises the linear layers of blocks as the `precision` of a
            request does.
        target: the file; it must not exist.

    Returns:
        The size of the file in bytes.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit.
        OutputError: the file exists, or there is no space for it.
    """
    planned = {name: Entry.of(tensor) for name, tensor in _converted(files, loras, precision, "meta")}
    metadata = {"format": "pt", "recipe": json.dumps(_recipe(files, loras, precision))}
    with output_errors("the converted file cannot be written", target), atomic_path(target) as temporary:
        file = SafetensorsFile(temporary, planned, metadata)
        free = shutil.disk_usage(target.parent).free
        if file.bytes > free:
            raise OutputError(
                "there is no space for the converted file",
                received=f"{free / 1e9:.1f} GB free at {target.parent}",
                allowed=f"{file.bytes / 1e9:.1f} GB",
            )
        # disable=None: no bar without a terminal.
        with tqdm(total=file.bytes, unit="B", unit_scale=True, desc="converting", disable=None) as bar:
            for name, tensor in _converted(files, loras, precision, "cpu"):
                file.write(name, tensor)
                bar.update(tensor.nbytes)
        file.close()
    return file.bytes


def _recipe(files: CheckpointFiles, loras: Sequence[LoraFile], precision: str) -> dict[str, object]:
    paths = dict.fromkeys(path for role in ("transformer", "adapter") for path in files.of_role(role))
    return {
        "made_by": f"talkinghead_lab {__version__}",
        "precision": precision,
        "files": {path.name: known_sha256(path) for path in paths},
        "loras": [
            {"name": lora.path.name, "sha256": known_sha256(lora.path), "scale": lora.scale} for lora in loras
        ],
    }


def _converted(
    files: CheckpointFiles, loras: Sequence[LoraFile], precision: str, device: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the converted file, part by part; on the device `meta`, their shapes and types."""
    dit = load_dit(files, None, device)
    changes = [(lora, changes_of(dit, lora.path)) for lora in loras]
    blocks = [f"{BLOCKS}.{number}" for number, _ in enumerate(dit.get_submodule(BLOCKS).children())]
    others = [name for name, _ in dit.named_children() if name != BLOCKS]
    for name in (*others, *blocks):
        part = dit.get_submodule(name)
        stored = PRECISION_TYPES.get(precision) if name in blocks else None
        _dequantize(part, keep=EIGHT_BITS if stored else ())
        convert(part, COMPUTE)
        for lora, of_lora in changes:
            for change in of_lora:
                assert lora.scale is not None, "merged LoRAs have one strength"
                if f"{change.module}.".startswith(f"{name}."):
                    apply_change(dit, change, lora.scale, lora.path)
        if stored:
            quantize_linears(part, stored)
        yield from _named(name, part)
        part.to("meta")


def _dequantize(part: nn.Module, keep: Collection[torch.dtype]) -> None:
    """Replace quantised layers by plain ones, but for those that are stored in a type to keep."""
    for name, layer in list(part.named_modules()):
        if isinstance(layer, QuantizedLinear) and layer.weight.dtype not in keep:
            linear = nn.Linear(layer.shape[1], layer.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(layer.dequantized().to(COMPUTE), requires_grad=False)
            linear.register_parameter("bias", layer.bias)
            replace_module(part, name, linear)


def _named(name: str, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a part under the names in files: scales as ComfyUI and LightX2V call them."""
    for key, tensor in part.state_dict(prefix=f"{name}.").items():
        layer, _, attribute = key.rpartition(".")
        is_scale = attribute == "scale" and isinstance(
            part.get_submodule(layer.removeprefix(name).removeprefix(".")), RowQuantizedLinear
        )
        yield (f"{layer}.weight_scale", tensor.float()) if is_scale else (key, tensor)
    for key, layer in part.named_modules(prefix=name):
        if isinstance(layer, RowQuantizedLinear) and layer.full_precision:
            text = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
            yield f"{key}.comfy_quant", torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
