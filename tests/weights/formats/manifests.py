"""Files of released sizes that hold a header and no data: the rest of each is a hole that reads as zeros."""

import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.parity import golden

# Bytes of each type, in the order in which the library `safetensors` writes tensors.
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}
Manifest = Mapping[str, tuple[str, Sequence[int]]]  # name → type, shape

_RELEASED = json.loads((golden.FOLDER / "released_checkpoint_tensors.json").read_text())
# Shapes of the released tensors of each network, by name.
SHAPES = {
    "transformer": next(t for file, t in _RELEASED.items() if file.startswith("diffusion_pytorch_model")),
    "adapter": _RELEASED["infinitetalk.safetensors"],
    "text_encoder": _RELEASED["models_t5_umt5-xxl-enc-bf16.pth"],
    "vae": _RELEASED["Wan2.1_VAE.pth"],
}


def write_manifest(
    path: Path, tensors: Manifest, metadata: Mapping[str, str], ones: Collection[str] = ()
) -> int:
    """Write a `.safetensors` file whose tensors are zero; the float32 scalars in `ones` are one.

    Returns:
        The length of the file.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset, offsets = 0, {}
    for name in sorted(tensors, key=lambda name: (list(BYTES).index(tensors[name][0]), name)):
        dtype, shape = tensors[name]
        end = offset + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + offset)
        for name in ones:
            file.seek(start + offsets[name])
            file.write(struct.pack("<f", 1.0))
    return path.stat().st_size
