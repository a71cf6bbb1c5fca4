"""GGUF files, written by the package `gguf`: tensors as stored, metadata, and what is refused."""

import math
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.kernels.block_types import BLOCK_TYPES
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.weights.formats import gguf_file
from talkinghead_lab.weights.formats.containers import open_file
from tests.weights.formats.gguf_files import dequantized, finish, random_blocks, write_gguf

TYPES = gguf.GGMLQuantizationType


@pytest.fixture
def write(tmp_path):
    """Write one file with a writer that a function has filled."""

    def write(fill, name="a.gguf"):
        writer = gguf.GGUFWriter(tmp_path / name, "wan")
        fill(writer)
        finish(writer)
        return tmp_path / name

    return write


def test_every_supported_type(write):
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(3, 2, 5, 32)).astype(np.float32)
    stored = {kind: random_blocks(kind, 6, 512) for kind in BLOCK_TYPES}

    def fill(writer):
        writer.add_string("general.name", "a small one")
        writer.add_uint32("wan.block_count", 7)
        writer.add_array("tokenizer.ggml.tokens", ["a", "<pad>", "an" * 40])
        writer.add_array("tokenizer.ggml.scores", [0.5] * 300)
        writer.add_tensor("f32", plain)
        writer.add_tensor("f16", plain.astype(np.float16))
        writer.add_tensor("f64", plain.astype(np.float64))
        bf16 = gguf.quants.quantize(plain, TYPES.BF16)
        writer.add_tensor("bf16", bf16, raw_dtype=TYPES.BF16)
        writer.add_tensor("bytes", np.arange(-3, 4, dtype=np.int8))
        for kind, blocks in stored.items():
            writer.add_tensor(kind, blocks, raw_dtype=TYPES[kind])

    file = open_file(write(fill, "no-suffix"))
    expected = torch.from_numpy(plain)
    for name, dtype in {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16"}.items():
        assert torch.equal(file.tensors[name], expected.to(getattr(torch, dtype))), name
    assert file.tensors["bytes"].tolist() == [-3, -2, -1, 0, 1, 2, 3]
    for kind, blocks in stored.items():
        layer = file.tensors[kind]
        assert isinstance(layer, BlockQuantizedLinear)
        assert (layer.shape, layer.stored_as) == ((6, 512), kind)
        assert torch.equal(layer.weight, torch.from_numpy(blocks))
        assert torch.equal(layer.dequantized(), dequantized(blocks, kind))
    assert file.metadata == {
        "general.architecture": "wan", "general.name": "a small one", "wan.block_count": "7"
    }  # fmt: skip
    assert len(file.tensors) == 5 + len(BLOCK_TYPES)


def test_unsupported_types_are_all_others_of_ggml():
    known = gguf_file.QUANTIZED | gguf_file.UNSUPPORTED
    others = {kind.value: kind.name for kind in TYPES if kind.value not in gguf_file.PLAIN}
    assert {number: known.get(number) for number in others} == others


def test_a_tensor_gets_its_original_shape(write):
    values = np.arange(48, dtype=np.float32).reshape(12, 4)

    def fill(writer):
        writer.add_array("comfy.gguf.orig_shape.a", [2, 3, 1, 2, 4])
        writer.add_tensor("a", values)

    file = open_file(write(fill))
    assert torch.equal(file.tensors["a"], torch.arange(48.0).view(2, 3, 1, 2, 4))


def test_tensors_stay_in_the_file(write):
    path = write(lambda writer: writer.add_tensor("a", np.ones((4, 1000), np.float32)))
    tensor = open_file(path).tensors["a"]
    assert tensor.untyped_storage().nbytes() == path.stat().st_size
    assert str(path) in Path("/proc/self/maps").read_text()


def quantised(writer, name, stored, kind):
    writer.add_tensor(name, stored, raw_dtype=TYPES[kind])


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda w: quantised(w, "a.b", np.zeros((4, 66), np.uint8), "IQ2_XXS"), r"`a\.b`.*IQ2_XXS in .*Q4_K"),
        (lambda w: quantised(w, "a.b", np.zeros((4, 17), np.uint8), "MXFP4"), r"`a\.b`.*MXFP4 in .*Q4_K"),
        (
            lambda w: quantised(w, "m", random_blocks("Q8_0", 6, 64).reshape(1, 6, -1), "Q8_0"),
            "not stored as",
        ),
        (
            lambda w: quantised(w, "v", random_blocks("Q8_0", 1, 64).reshape(-1), "Q8_0"),
            "not stored as a mat",
        ),
        (lambda w: w.add_uint16("split.count", 3), "one file of a split GGUF.*llama-gguf-split"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(write, fill, message):
    path = write(fill)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as caught:
        open_file(path)
    assert str(path) in str(caught.value)


def test_a_rearranged_matrix_is_refused(write):
    def fill(writer):
        writer.add_array("comfy.gguf.orig_shape.a", [12, 256])
        quantised(writer, "a", random_blocks("Q4_K", 6, 512), "Q4_K")

    with pytest.raises(CheckpointError, match=r"`a` is quantised.*Q4_K, shape \(12, 256\)"):
        open_file(write(fill))


def test_a_part_of_a_split_file_is_known_by_its_name(write):
    path = write(lambda writer: writer.add_tensor("a", np.ones(3, np.float32)), "wan-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="one file of a split GGUF"):
        open_file(path)


def test_other_versions_are_refused(write):
    path = write(lambda writer: writer.add_tensor("a", np.ones(3, np.float32)))
    for version, endian in ((1, "<"), (3, ">"), (4, "<")):
        path.write_bytes(b"GGUF" + struct.pack(f"{endian}I", version) + path.read_bytes()[8:])
        with pytest.raises(CheckpointError, match=r"version \d+ in .*little-endian"):
            open_file(path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = write_gguf(
        tmp_path / "whole.gguf", {"a": torch.ones(4, 64), "b": torch.ones(3)}, "Q8_0"
    ).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(4, len(whole) - 20, 7):  # the last tensor is padded to 32 bytes
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged or truncated") as caught:
            open_file(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [0, 3, 255, 2**31, 2**63, 2**64 - 1])
def test_no_number_of_the_header_can_do_harm(tmp_path, value):
    """Each place holds a hostile number once: the file opens with the same names, or is refused."""
    whole = write_gguf(tmp_path / "whole.gguf", {"a": torch.ones(4, 64), "b": torch.ones(3)}, "Q8_0", c="d")
    content, path, problems = whole.read_bytes(), tmp_path / "hostile.gguf", []
    number = struct.pack("<Q", value)
    for place in range(8, 160):
        path.write_bytes(content[:place] + number + content[place + 8 :])
        try:
            tensors = open_file(path).tensors
        except CheckpointError as error:
            problems.append(str(error))
        else:
            assert all(math.prod(tensor.shape) <= 256 for tensor in tensors.values())
    assert len(problems) > 50
    assert max(map(len, problems)) < 500


def test_a_vocabulary_is_skipped_quickly(write):
    def fill(writer):
        writer.add_token_list([f"token {number}" for number in range(256_384)])
        writer.add_tensor("a", np.ones((4, 32), np.float32))

    path = write(fill)
    started = time.perf_counter()
    assert open_file(path).tensors.keys() == {"a"}
    assert time.perf_counter() - started < 1.5
