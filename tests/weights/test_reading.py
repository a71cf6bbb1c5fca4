"""Tensors reach a device whole and converted, through buffers that are smaller than they are."""

import pytest
import torch

from talkinghead_lab.weights.reading import Upload, convert
from tests.offload.test_streamed_blocks import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("stored", "dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
)
def test_parts_are_sent_one_after_the_other_through_two_buffers(device, stored, dtype):
    upload = Upload(torch.device(device), stage_bytes=1024)
    source = torch.randn(2000).to(stored)
    target = torch.empty(2000, dtype=dtype, device=device)
    for start in range(0, 2000, 512):
        upload.send(target[start : start + 512], source[start : start + 512])
    assert torch.equal(target.cpu(), source.to(dtype))
    assert upload.parts == 4 and len(upload.stages) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int8, torch.float8_e4m3fn])
def test_an_upload_equals_a_plain_copy(stored):
    upload = Upload(torch.device("cuda"), stage_bytes=4096)
    for shape in ((), (3,), (129, 77), (2, 3, 50, 50)):
        tensor = (10 * torch.randn(shape)).to(stored)
        dtype = torch.bfloat16 if tensor.is_floating_point() and tensor.element_size() > 1 else stored
        assert torch.equal(upload(tensor, dtype).cpu().float(), tensor.to(dtype).float())


def test_on_a_cpu_a_tensor_of_the_right_type_is_not_copied():
    tensor = torch.randn(5)
    assert Upload(torch.device("cpu"))(tensor, torch.float32).data_ptr() == tensor.data_ptr()


def test_converting_leaves_eight_bit_weights_and_scales_as_they_are():
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    layer.register_buffer("scale", torch.ones(4, 1))
    layer.register_buffer("stored", torch.ones(4, dtype=torch.int8))
    weight = layer.weight
    convert(layer, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == {
        "weight": torch.bfloat16, "bias": torch.bfloat16, "scale": torch.float32, "stored": torch.int8
    }  # fmt: skip
    assert layer.weight is weight
