"""The image encoder at tiny sizes: comparison with transformers' model, names, preprocessing, errors."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.models.encoders.image import ImageEncoder, ImageEncoderConfig, from_released

TINY = ImageEncoderConfig(dim=24, num_layers=3, ffn_dim=20, patch_size=4, image_size=12, num_heads=3)
FIELDS = {"num_heads": 3}


@pytest.fixture(scope="module")
def full_model() -> CLIPVisionModel:
    """The complete image tower of transformers."""
    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=12,
        patch_size=4,
        hidden_act="gelu",
        initializer_range=0.3,
    )
    return CLIPVisionModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def released(full_model: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The weights of the tower under the names of the released file, with other parts of that file."""
    state = full_model.state_dict()
    tensors = {
        "visual.cls_embedding": state["embeddings.class_embedding"][None, None],
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "visual.head": torch.zeros(24, 5),
        "log_scale": torch.zeros(()),
        "textual.blocks.0.attn.q.weight": torch.zeros(2, 2),
    }
    for part in ("weight", "bias"):
        tensors[f"visual.pre_norm.{part}"] = state[f"pre_layrnorm.{part}"]
        tensors[f"visual.post_norm.{part}"] = state[f"post_layernorm.{part}"]
        for i in range(3):
            theirs, ours = f"visual.transformer.{i}", f"encoder.layers.{i}"
            qkv = [state[f"{ours}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            tensors[f"{theirs}.attn.to_qkv.{part}"] = torch.cat(qkv)
            tensors[f"{theirs}.attn.proj.{part}"] = state[f"{ours}.self_attn.out_proj.{part}"]
            for old, new in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.0", "mlp.fc1")):
                tensors[f"{theirs}.{old}.{part}"] = state[f"{ours}.{new}.{part}"]
            tensors[f"{theirs}.mlp.2.{part}"] = state[f"{ours}.mlp.fc2.{part}"]
    return tensors


@pytest.fixture(scope="module")
def model(released) -> ImageEncoder:
    config = ImageEncoderConfig.from_tensors({name: tuple(t.shape) for name, t in released.items()}, FIELDS)
    assert config == TINY
    model = ImageEncoder(config).eval().requires_grad_(False)
    model.load_state_dict(from_released(released, config))
    return model


def test_features_are_the_states_before_the_last_block(model, full_model):
    image = torch.randn(2, 3, 17, 29, generator=torch.Generator().manual_seed(7)).clamp(-1, 1)
    states = full_model(model.preprocess(image), output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert model(image).shape == (2, 10, 24)
    torch.testing.assert_close(model(image), states[-2])
    assert (model(image) - states[-1]).abs().max() > 0.1


def test_images_are_resized_and_normalised(model):
    grey = model.preprocess(torch.zeros(1, 3, 40, 20))
    expected = [(0.5 - mean) / std for mean, std in zip(TINY.image_mean, TINY.image_std, strict=True)]
    torch.testing.assert_close(grey, torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 12, 12))
    same_size = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(8)) * 2 - 1
    undone = model.preprocess(same_size) * torch.tensor(TINY.image_std).view(3, 1, 1)
    undone = (undone + torch.tensor(TINY.image_mean).view(3, 1, 1)) * 2 - 1
    torch.testing.assert_close(undone, same_size)


def test_fused_projections_are_split_into_views(released):
    mapped = from_released(released, TINY)
    fused = released["visual.transformer.1.attn.to_qkv.weight"]
    key = mapped["vision.encoder.layers.1.self_attn.k_proj.weight"]
    assert key.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert torch.equal(key, fused[24:48])


def test_unused_parts_are_dropped_and_unknown_names_kept(released):
    odd = {
        "visual.transformer.0.attn.rotary": torch.zeros(1),
        "visual.adapter.weight": torch.zeros(1),
        "head.weight": torch.zeros(1),
    }
    mapped = from_released(released | odd, TINY)
    assert mapped.keys() == ImageEncoder(TINY).state_dict().keys() | odd.keys()


def test_the_network_has_no_buffers():
    """A module built on the meta device would never get the values of a buffer outside the checkpoint."""
    with torch.device("meta"):
        model = ImageEncoder(TINY)
    assert not dict(model.named_buffers())


def test_bfloat16_weights(model):
    half = ImageEncoder(TINY).eval()
    half.load_state_dict(model.state_dict())
    image = torch.zeros(1, 3, 12, 12)
    features = half.to(torch.bfloat16)(image)
    assert features.dtype == torch.bfloat16
    assert (features.float() - model(image)).norm() / model(image).norm() < 0.03


def test_inconsistent_checkpoints_are_refused(released):
    shapes = {name: tuple(tensor.shape) for name, tensor in released.items()}
    with pytest.raises(CheckpointError, match="24 channels for 16 heads"):
        ImageEncoderConfig.from_tensors(shapes, {})
    with pytest.raises(CheckpointError, match=r"`visual\.pos_embedding`.*10 patches"):
        ImageEncoderConfig.from_tensors(shapes | {"visual.pos_embedding": (1, 11, 24)}, FIELDS)
    del shapes["visual.patch_embedding.weight"]
    with pytest.raises(CheckpointError, match=r"`visual\.patch_embedding\.weight`.*missing"):
        ImageEncoderConfig.from_tensors(shapes, FIELDS)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 4, 12, 12), (1, 3, 0, 12)])
def test_tensors_of_other_shapes_are_refused(model, shape: tuple[int, ...]):
    with pytest.raises(InvalidRequest, match=r"\[B, 3, H, W\]"):
        model(torch.zeros(shape))
