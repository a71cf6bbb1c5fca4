"""States of weight files."""

from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.digests import weight_states


def test_every_weight_file_has_a_state(request_for):
    states = weight_states(checkpoint_files(request_for()))
    assert {"wan/config.json", "wan/Wan2.1_VAE.safetensors", "wav2vec2/config.json"} <= set(states)
    assert any(name.startswith("wan/google/umt5-xxl/") for name in states)
    assert any(name.startswith("infinitetalk/") for name in states)
