"""CSIM with a small network of random weights in place of ArcFace: alignment, similarity, refusals."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.measures import csim
from talkinghead_lab.measures.given_weights import ARCFACE
from talkinghead_lab.measures.photographed_faces import Faces
from tests.measures.given import give

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A convolution and a linear layer: [1, 3, 112, 112] → [1, 512], as ArcFace has it."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(4, 3, 16, 16)).astype(np.float32),
        "matrix": rng.normal(size=(4 * 49, 512)).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("Conv", ["input.1", "kernel"], ["maps"], strides=[16, 16]),
        onnx.helper.make_node("Flatten", ["maps"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "matrix"], ["683"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "stand-in",
        [onnx.helper.make_tensor_value_info("input.1", kind, ["None", 3, 112, 112])],
        [onnx.helper.make_tensor_value_info("683", kind, ["None", 512])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "arcface.onnx"
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    give(monkeypatch, ARCFACE, path)
    return weights


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC))


def test_the_embedding_is_the_networks(network):
    """Red, green, blue; 127.5 about 127.5; length 1."""
    pixels = picture(0)
    found = csim.embedding(pixels, csim.TEMPLATE)
    blocks = (pixels[:112, :112].transpose(2, 0, 1) / 127.5 - 1).reshape(3, 7, 16, 7, 16)
    maps = np.einsum("cyixj,kcij->kyx", blocks, network["kernel"])
    wanted = maps.ravel() @ network["matrix"]
    assert found == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-5)


def test_a_transform_is_recovered_and_never_mirrors():
    turn = 1.3 * Rotation.from_euler("z", 0.4).as_matrix()[:2, :2]
    source = (csim.TEMPLATE - [20, 10]) @ np.linalg.inv(turn).T
    found = csim.similarity_transform(source, csim.TEMPLATE)
    assert found == pytest.approx(np.hstack([turn, [[20], [10]]]), abs=1e-9)
    mirrored = csim.similarity_transform(csim.TEMPLATE * [-1, 1], csim.TEMPLATE)[:, :2]
    assert np.linalg.det(mirrored) > 0
    assert mirrored @ mirrored.T == pytest.approx(np.linalg.det(mirrored) * np.eye(2))


def test_a_face_that_is_turned_and_moved_is_aligned():
    """The aligned picture is the same, wherever the face lies; black where there is no picture."""
    pixels = picture(1)
    upright = csim.aligned(pixels, csim.TEMPLATE)
    assert upright == pytest.approx(pixels[:112, :112].transpose(2, 0, 1), abs=1e-9)
    quarter = np.rot90(pixels, -1)  # clockwise: (x, y) becomes (159 − y, x)
    points = np.stack([159 - csim.TEMPLATE[:, 1], csim.TEMPLATE[:, 0]], 1)
    assert csim.aligned(np.ascontiguousarray(quarter), points) == pytest.approx(upright, abs=1e-6)
    assert not csim.aligned(pixels, csim.TEMPLATE - 200).any()


def test_the_same_face_is_similar_and_another_is_not(network, monkeypatch):
    points = np.tile(csim.TEMPLATE, (3, 1, 1))
    faces = Faces(np.zeros(3), np.zeros((3, 4)), points, np.zeros((3, 3)))
    monkeypatch.setattr(csim, "find_face", lambda pixels: faces)
    own, other = (Image.fromarray(picture(seed)) for seed in (2, 3))
    assert csim.csim(own, {0: own, 2: own}, faces).value == pytest.approx(1)
    mixed = csim.csim(own, {0: own, 1: other}, faces).value
    alone = csim.csim(own, {1: other}, faces).value
    assert alone < 0.5
    assert mixed == pytest.approx((1 + alone) / 2)
    assert csim.csim(own, {7: own}, faces).why_not == "no frame whose face was followed"


def test_without_weights_the_reason_is_given(tmp_path, monkeypatch):
    faces = Faces(np.zeros(1), np.zeros((1, 4)), csim.TEMPLATE[None], np.zeros((1, 3)))
    monkeypatch.setattr(csim, "find_face", lambda pixels: faces)
    monkeypatch.delenv(ARCFACE.variable, raising=False)
    own = Image.fromarray(picture(2))
    assert "ARCFACE_MODEL is not set" in csim.csim(own, {0: own}, faces).why_not
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no network")
    monkeypatch.setenv(ARCFACE.variable, str(wrong))
    assert "names other weights" in csim.csim(own, {0: own}, faces).why_not
    give(monkeypatch, ARCFACE, wrong)
    with pytest.raises(CheckpointError, match="no network in ONNX"):
        csim.embedding(picture(2), csim.TEMPLATE)
