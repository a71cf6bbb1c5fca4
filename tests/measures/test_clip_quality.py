"""CLIP's judgement of pictures, by a small network of random weights in place of the published one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.measures import clip_quality
from talkinghead_lab.measures.given_weights import CLIP
from tests.measures.given import give


@pytest.fixture
def folder(tmp_path):
    """As the published one: weights, configuration, and a tokenizer that knows letters only."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {
        "vocab_size": len(vocabulary),
        "eos_token_id": len(vocabulary) - 1,
        "bos_token_id": len(vocabulary) - 2,
    }
    config = CLIPConfig(
        text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    clip_quality._clip.cache_clear()
    return tmp_path


def pictures(count: int) -> list[Image.Image]:
    return [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 60, 3), np.uint8))
        for n in range(count)
    ]


def test_the_value_is_the_softmax_of_both_prompts_similarities(folder, monkeypatch):
    give(monkeypatch, CLIP, folder / "model.safetensors")
    frames = pictures(3)
    network, prompts = clip_quality._clip(folder / "model.safetensors")
    assert prompts["input_ids"].shape == (2, len("Goodphoto.") + 2)
    assert not torch.equal(*prompts["input_ids"])
    with torch.inference_mode():
        text = network.text_projection(network.text_model(**prompts).pooler_output)
        pixels = torch.cat([clip_quality.clip_input(frame, 32) for frame in frames])
        image = network.visual_projection(network.vision_model(pixels).pooler_output)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    wanted = (network.logit_scale.exp() * cosines).softmax(1)[:, 0]
    assert wanted.std() > 0
    assert clip_quality.clip_quality(frames).value == pytest.approx(wanted.mean().item(), abs=1e-6)


def test_the_middle_square_is_normalised_as_clip_does():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = (255, 0, 128)
    found = clip_quality.clip_input(Image.fromarray(pixels), 16)[0]
    wanted = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (128 / 255 - 0.40821073) / 0.27577711]
    assert found[:, 8, 8].tolist() == pytest.approx(wanted, abs=1e-5)


def test_what_is_missing_is_told(folder, monkeypatch):
    monkeypatch.delenv(CLIP.variable, raising=False)
    assert "CLIP_MODEL is not set" in clip_quality.clip_quality(pictures(1)).why_not
    monkeypatch.setenv(CLIP.variable, str(folder / "model.safetensors"))
    assert "names other weights" in clip_quality.clip_quality(pictures(1)).why_not
    give(monkeypatch, CLIP, folder / "model.safetensors")
    assert clip_quality.clip_quality([]).why_not == "the video has no frames"
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="2 tensors are misshapen"):
        clip_quality.good_photo(CLIP.path(), pictures(1))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read.*whole folder"):
        clip_quality.good_photo(CLIP.path(), pictures(1))
