"""Reading weight files without a second copy, and giving their tensors to networks, strictly."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.offload.host_buffer import HostBuffer

STAGE_BYTES = 2**26


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` or `.pth` file, mapped from disk rather than copied.

    Raises:
        CheckpointError: missing, truncated or damaged, or a `.pth` that holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError("no such weight file", received=str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "the file holds more than tensors and was not opened",
            received=str(path),
            remedy="It could run code. Take the released file, or convert one you trust to safetensors.",
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(
            f"the weight file is damaged or cut short ({error})",
            received=str(path),
            remedy="Download it again.",
        ) from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Give a module built on the meta device its weights; floating ones are converted to `dtype`.

    Raises:
        CheckpointError: a missing, unexpected or misshapen tensor, which it names.
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
                remedy="The file is for another model, or incomplete.",
            )
    upload = Upload(torch.device(device))
    for name, tensor in tensors.items():
        _assign(module, name, upload(tensor, _held_type(name, tensor, dtype)))
    module.eval().requires_grad_(False)


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the floating weights of a loaded module where they lie, by the rule of `load_strict`."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data = tensor.data.to(_held_type(name, tensor, dtype))


def _held_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a weight is held in; eight-bit weights, their scales and integers keep their own."""
    own = tensor.element_size() == 1 or name.endswith("scale") or not tensor.is_floating_point()
    return tensor.dtype if dtype is None or own else dtype


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if leaf in parent._parameters:
        parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        parent._buffers[leaf] = tensor


class Upload:
    """Brings tensors to a device, converted on the way; to another than the CPU through two locked buffers.

    While one buffer is on its way, all threads read the next part of the file and convert it: no part of the
    weights is in host memory twice, and the bus works beside the processor.
    """

    def __init__(self, device: torch.device, stage_bytes: int = STAGE_BYTES):
        self.device, self.stage_bytes, self.parts = device, stage_bytes, 0
        self.stages: list[tuple[HostBuffer, Any]] = []

    def __call__(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor as `dtype` on the device; on the CPU the tensor itself where it has that type."""
        if self.device.type in ("cpu", "meta"):
            return tensor.to(self.device, dtype)
        uploaded = torch.empty(tensor.shape, dtype=dtype, device=self.device)
        elements = self.stage_bytes // dtype.itemsize
        for target, source in zip(
            uploaded.flatten().split(elements), tensor.flatten().split(elements), strict=True
        ):
            self.send(target, source)
        return uploaded

    def send(self, target: Tensor, source: Tensor) -> None:
        """Begin to copy at most `stage_bytes`."""
        if not self.stages:
            runtime = torch.get_device_module(self.device)
            self.stages = [(HostBuffer(self.stage_bytes), runtime.Event()) for _ in range(2)]
            for buffer, _ in self.stages:
                buffer.lock(self.device)
        buffer, sent = self.stages[self.parts % 2]
        self.parts += 1
        sent.synchronize()
        staged = buffer.bytes[: target.nbytes].view(target.dtype)
        staged.copy_(source)
        target.copy_(staged, non_blocking=True)
        sent.record(torch.get_device_module(self.device).current_stream(self.device))
