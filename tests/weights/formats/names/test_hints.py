"""What the path of a file tells where the header does not."""

from pathlib import Path

import pytest

from talkinghead_lab.weights.formats.names.hints import doubt


@pytest.mark.parametrize(
    ("role", "path", "model"),
    [
        ("adapter", "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors", "MultiTalk"),
        ("adapter", "Wan2_1-InfiniteTalk_Single_Q8.gguf", None),
        ("adapter", "multitalk/Wan2_1-InfiniTetalk-Single_fp16.safetensors", None),
        ("adapter", "multitalk/model.safetensors", "MultiTalk"),
        ("vae", "vae/qwen_image_vae.safetensors", "the autoencoder of Qwen-Image"),
        ("vae", "vae/wan_2.1_vae.safetensors", None),
        ("transformer", "wan2.1_i2v_720p_14B_fp8_e4m3fn.safetensors", "Wan2.1 I2V 14B for 720P"),
        ("transformer", "wan2.1_i2v_480p_14B_fp16.safetensors", None),
        ("speech_encoder", "wav2vec2-base-960h/model.safetensors", "wav2vec2-base-960h (English)"),
        ("text_encoder", "qwen/umt5.safetensors", None),
    ],
)
def test_doubts(role, path, model):
    assert doubt(role, Path(path)) == model
