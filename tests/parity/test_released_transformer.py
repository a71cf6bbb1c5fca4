"""The tensors of the released transformer and adapter fit ours at released sizes."""

import json

import torch

from talkinghead_lab.models.dit.config import DiTConfig
from talkinghead_lab.models.dit.model import DiT
from tests.parity import golden

RELEASED = json.loads((golden.FOLDER / "released_checkpoint_tensors.json").read_text())
SHAPES = {
    name: tuple(shape)
    for file, tensors in RELEASED.items()
    if file.startswith(("infinitetalk", "diffusion_pytorch_model"))
    for name, shape in tensors.items()
}


def test_no_tensor_is_missing_unexpected_or_misshapen():
    with torch.device("meta"):
        model = DiT(DiTConfig.from_tensors(SHAPES, {"num_heads": 40, "text_len": 512, "model_type": "i2v"}))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == SHAPES


def test_sizes_are_read_from_the_tensors():
    config = DiTConfig.from_tensors(SHAPES, {"num_heads": 40, "text_len": 512})
    assert (config.dim, config.ffn_dim, config.num_layers) == (5120, 13824, 40)
    assert (config.audio_window, config.audio_features, config.audio_tokens) == (5, 12 * 768, 32)
    assert (config.text_dim, config.image_dim, config.patch_size) == (4096, 1280, (1, 2, 2))
