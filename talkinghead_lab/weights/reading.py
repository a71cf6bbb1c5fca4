"""Load tensors into networks, strictly and without a second copy."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.offload.host_buffer import HostBuffer
from talkinghead_lab.weights.formats.containers import Stored

BUFFER_BYTES = 2**26


def shapes_of(tensors: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Stored],
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Load weights into a module on the meta device, with floating-point weights converted to `dtype`.

    Linear layers whose matrix is quantised are replaced by it. Elsewhere, quantised matrices are dequantised.

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
        if isinstance(tensor, Tensor) and tensor.is_floating_point() != state[name].is_floating_point():
            raise CheckpointError(
                f"{source}: a tensor has the wrong type",
                received=f"{name} of {tensor.dtype}",
                allowed="floating point" if state[name].is_floating_point() else str(state[name].dtype),
                remedy="The file is damaged or belongs to another model.",
            )
    upload = Upload(torch.device(device))
    for name, stored in tensors.items():
        if isinstance(stored, Tensor):
            _assign(module, name, upload(stored, _loaded_type(name, stored, dtype)))
        else:
            _assign_quantized(module, name, stored, dtype, upload)
    module.eval().requires_grad_(False)


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the floating-point weights of a loaded module in place, by the rule of `load_strict`."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data = tensor.data.to(_loaded_type(name, tensor, dtype))


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


def _assign_quantized(
    module: nn.Module, name: str, stored: QuantizedLinear, dtype: torch.dtype | None, upload: "Upload"
) -> None:
    """Put a quantised matrix in the place of the linear layer that it is the weight of."""
    layer_name = name.rpartition(".")[0]
    for part, tensor in list(stored.named_buffers()):
        stored.register_buffer(part, upload(tensor, tensor.dtype))
    linear = module.get_submodule(layer_name)
    if not isinstance(linear, nn.Linear):
        _assign(module, name, stored.weight_as(dtype or torch.float32))
        return
    stored.bias = linear.bias  # loaded already, or still to come under its own name
    replace_module(module, layer_name, stored)


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule with a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)


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
