"""Digests of weight files."""

from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.digests import weight_digests, weight_states


def test_every_weight_file_has_a_digest(request_for):
    digests = weight_digests(weight_states(checkpoint_files(request_for())))
    assert {"wan/config.json", "wan/Wan2.1_VAE.safetensors", "wav2vec2/config.json"} <= set(digests)
    assert any(name.startswith("wan/google/umt5-xxl/") for name in digests)
    assert any(name.startswith("infinitetalk/") for name in digests)
