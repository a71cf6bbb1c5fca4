"""Read weight files without a second copy and load their tensors into networks, strictly."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.offload.host_buffer import HostBuffer

BUFFER_BYTES = 2**26
# PyTorch's words for what a file of tensors does not hold; other errors of unpickling mean damage.
UNSAFE = re.compile("Unsupported (global|class)|Trying to|Can only")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or one of PyTorch, memory-mapped rather than copied.

    PyTorch's form from before 2020, which is no zip archive, is copied. Tensors may lie in a `state_dict`.

    Raises:
        CheckpointError: missing, truncated or damaged, or the file holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError("no such weight file", received=str(path))
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as error:  # parsers of damaged files raise many kinds
        if isinstance(error, pickle.UnpicklingError) and UNSAFE.search(str(error)):
            raise CheckpointError(
                "the file holds more than tensors and was not opened",
                received=str(path),
                remedy="It could run code. Use the released file, or convert one you trust to safetensors.",
            ) from None
        raise CheckpointError(
            f"the weight file is damaged or truncated ({error})",
            received=str(path),
            remedy="Download it again.",
        ) from None
    if isinstance(found, Mapping) and found.keys() == {"state_dict"}:
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise CheckpointError(f"the weight file is of type {kind}, not tensors by name", received=str(path))
    for name, value in found.items():
        if problem := _problem(name, value):
            raise CheckpointError(f"`{str(name)[:80]}` of the weight file {problem}", received=str(path))
    return dict(found)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _problem(name: object, value: object) -> str | None:
    """Why an entry of a file cannot be a weight; None if it can."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return f"is of type {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return "is not a dense tensor"
    if value.numel() == 0:
        return f"is empty: its shape is {tuple(value.shape)}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has fewer values than its shape {tuple(value.shape)} says"
    return None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Load weights into a module on the meta device, with floating-point weights converted to `dtype`.

    Raises:
        CheckpointError: a tensor is missing, unexpected or misshapen; the error names it.
    """
    expected = shapes_of(module.state_dict())
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    misshapen = [n for n in expected.keys() & tensors.keys() if tuple(tensors[n].shape) != expected[n]]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            first = names[0]
            shapes = (
                f" has shape {tuple(tensors[first].shape)}, not {expected[first]}"
                if names is misshapen
                else ""
            )
            raise CheckpointError(
                f"{source}: {len(names)} tensors are {problem}",
                received=f"{first}{shapes}" + (" and others" if len(names) > 1 else ""),
                remedy="The file is incomplete or belongs to another model.",
            )
    state = module.state_dict()
    for name, tensor in tensors.items():
        if not _fits_type(tensor, state[name]):
            raise CheckpointError(
                f"{source}: a tensor has the wrong type",
                received=f"{name} of {tensor.dtype}",
                allowed="floating point" if state[name].element_size() > 1 else str(state[name].dtype),
                remedy="The file is damaged or belongs to another model.",
            )
    upload = Upload(torch.device(device))
    for name, tensor in tensors.items():
        _assign(module, name, upload(tensor, _loaded_type(name, tensor, dtype)))
    module.eval().requires_grad_(False)


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the floating-point weights of a loaded module in place, by the rule of `load_strict`."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data = tensor.data.to(_loaded_type(name, tensor, dtype))


def _fits_type(tensor: Tensor, expected: Tensor) -> bool:
    """8-bit weights and integers need their type; other weights any floating-point type."""
    if expected.is_floating_point() and expected.element_size() > 1:
        return tensor.is_floating_point()
    return tensor.dtype == expected.dtype


def _loaded_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type of a loaded weight; 8-bit weights, their scales and integers keep their stored type."""
    keeps_type = tensor.element_size() == 1 or name.endswith("scale") or not tensor.is_floating_point()
    return tensor.dtype if dtype is None or keeps_type else dtype


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if leaf in parent._parameters:
        parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        parent._buffers[leaf] = tensor


class Upload:
    """Copies tensors to a device and converts their type; to a GPU through two page-locked buffers.

    While one buffer is being copied, all threads read and convert the next part of the file. Copy and reading
    overlap, and no part of the weights is in host memory twice.
    """

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device, self.buffer_bytes, self.parts = device, buffer_bytes, 0
        self.buffers: list[tuple[HostBuffer, Any]] = []

    def __call__(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor as `dtype` on the device; on the CPU the tensor itself if it already has that type."""
        if self.device.type in ("cpu", "meta"):
            return tensor.to(self.device, dtype)
        uploaded = torch.empty(tensor.shape, dtype=dtype, device=self.device)
        elements = self.buffer_bytes // dtype.itemsize
        targets, sources = (torch.split(t.flatten(), elements) for t in (uploaded, tensor))
        for target, source in zip(targets, sources, strict=True):
            self.send(target, source)
        return uploaded

    def send(self, target: Tensor, source: Tensor) -> None:
        """Start to copy a part of at most `buffer_bytes`."""
        if not self.buffers:
            runtime = torch.get_device_module(self.device)
            self.buffers = [(HostBuffer(self.buffer_bytes), runtime.Event()) for _ in range(2)]
            for buffer, _ in self.buffers:
                buffer.lock(self.device)
        buffer, sent = self.buffers[self.parts % 2]
        self.parts += 1
        sent.synchronize()
        converted = buffer.bytes[: target.nbytes].view(target.dtype)
        converted.copy_(source)
        target.copy_(converted, non_blocking=True)
        sent.record(torch.get_device_module(self.device).current_stream(self.device))
