"""The speech encoder at tiny sizes: comparison with transformers' model, long recordings, names, errors."""

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from talkinghead_lab.errors import CheckpointError, MediaError
from talkinghead_lab.models.encoders import long_recordings
from talkinghead_lab.models.encoders import speech as speech_encoder
from talkinghead_lab.models.encoders.speech import SpeechEncoder, SpeechEncoderConfig, from_released
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.checkpoints import load_speech_encoder

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
RATE = 16_000


def reference_model(norm: dict) -> Wav2Vec2Model:
    torch.manual_seed(9)
    model = Wav2Vec2Model(Wav2Vec2Config(**SIZES, **norm)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # With the default initialisation, the states hardly depend on the audio.
        if parameter.ndim > 1 and "conv_layers" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def build(network: Wav2Vec2Model, norm: dict) -> SpeechEncoder:
    tensors = network.state_dict()
    config = SpeechEncoderConfig.from_tensors(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, SIZES | norm
    )
    model = SpeechEncoder(config).eval().requires_grad_(False)
    model.load_state_dict(from_released(tensors, config))
    return model


@pytest.fixture(scope="module")
def model() -> SpeechEncoder:
    return build(reference_model(GROUP), GROUP)


def recording(seconds: float, seed: int = 10) -> Tensor:
    """Noise of varying loudness."""
    samples = int(seconds * RATE)
    loudness = torch.sin(torch.arange(samples) / RATE * 3.7).square() + 0.05
    return 0.1 * loudness * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [GROUP, LAYER], ids=["group", "layer"])
def test_states_equal_those_of_transformers(norm: dict):
    """With as many frames as features, the interpolation is the identity."""
    network, audio = reference_model(norm), recording(1.3)
    normalised = (audio - audio.mean()) / (audio.var(correction=0) + 1e-7).sqrt()
    result = network(normalised[None], output_hidden_states=True)
    states = torch.stack([*result.hidden_states[1:-1], result.last_hidden_state], dim=2)[0]
    out = build(network, norm)(audio, len(states))
    assert out.shape == (64, 2, 16)
    torch.testing.assert_close(out, states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [GROUP, LAYER], ids=["group", "layer"])
@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 47_999, 50_003])
def test_pieces_give_the_features_of_the_full_recording(norm: dict, samples: int, monkeypatch):
    network, audio = reference_model(norm), recording(4)[:samples]
    expected = network.feature_extractor(audio[None])[0]
    monkeypatch.setattr(speech_encoder, "_SAMPLES_PER_PIECE", 7 * 320 + 100)
    torch.testing.assert_close(build(network, norm)._features(audio), expected, rtol=1e-4, atol=1e-5)


def test_each_frame_has_one_row(model: SpeechEncoder):
    for seconds, frames in ((0.2, 5), (1.0, 25), (3.3, 82), (0.05, 1)):
        assert model(recording(seconds), frames).shape == (frames, 2, 16)


def test_normalisation_removes_the_loudness(model: SpeechEncoder):
    torch.testing.assert_close(model(0.02 * recording(1), 25), model(recording(1), 25), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [GROUP, LAYER], ids=["group", "layer"])
@pytest.mark.parametrize("heads_at_once", [1, 3, 4])
def test_a_recording_in_pieces_has_the_states_of_the_full_one(norm: dict, heads_at_once: int, monkeypatch):
    """Every row attends to the whole recording; three pieces, the last of them shorter."""
    network, audio, frames = reference_model(norm), recording(2.6), 65
    model = build(network, norm)
    at_once = model(audio, frames)
    monkeypatch.setattr(speech_encoder, "ROWS_PER_PIECE", 30)
    monkeypatch.setattr(long_recordings, "ROWS_PER_PIECE", 30)
    monkeypatch.setattr(long_recordings, "HEADS_BYTES", heads_at_once * 3 * frames * 4 * 4)
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v: calls.append((*q.shape[1:3], k.shape[2])) or attention(q, k, v),
    )
    torch.testing.assert_close(model(audio, frames), at_once, rtol=1e-4, atol=1e-5)
    groups = {1: [1, 1, 1, 1], 3: [3, 1], 4: [4]}[heads_at_once]
    assert calls == 2 * [(heads, 65, 65) for heads in groups], "both layers"


def test_the_bundled_encoder_in_pieces():
    """Ninety seconds, which take two pieces, against the layers of transformers on all rows."""
    request = GenerationParams(checkpoint="embedded", prompt="-", image_path="-", audio_path="-")
    model = load_speech_encoder(checkpoint_files(request), torch.float32, "cpu")
    with torch.inference_mode():
        states = model(recording(90), 2250)
        rows = model._rows(recording(90), 2250)
        at_once = torch.stack(list(model.layer_states(rows[None])), dim=2)[0]
    torch.testing.assert_close(states, at_once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seconds", [60.0, 61.0])
def test_long_recordings_have_one_row_per_frame(model: SpeechEncoder, seconds: float):
    frames = int(seconds * 25)
    states = model(recording(seconds), frames)
    assert states.shape == (frames, 2, 16)
    assert states.isfinite().all()


def test_a_quiet_passage_is_not_raised_to_the_loudness_of_the_rest(model: SpeechEncoder):
    """The norm over time uses the statistics of the full recording for every piece."""
    audio = recording(90)
    audio[60 * RATE :] *= 1e-3
    quiet = model._features(audio)[:, 70 * 50 :]
    alone = model._features(audio[70 * RATE :])
    assert quiet.std() < 0.2 * alone.std()


def test_names_of_pretraining_and_recognition_files_are_mapped():
    network = reference_model(GROUP)
    plain = network.state_dict()
    old = {"original0": "weight_g", "original1": "weight_v"}
    released = {"quantizer.codevectors": torch.zeros(1), "project_hid.weight": torch.zeros(1)}
    released |= {"project_q.bias": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    for name, tensor in plain.items():
        stem, _, last = name.rpartition(".parametrizations.weight.")
        released[f"wav2vec2.{stem}.{old[last]}" if stem else f"wav2vec2.{name}"] = tensor
    shapes = {name: tuple(tensor.shape) for name, tensor in released.items()}
    config = SpeechEncoderConfig.from_tensors(shapes, SIZES | GROUP)
    mapped = from_released(released, config)
    assert mapped.keys() == SpeechEncoder(config).state_dict().keys()
    assert mapped.keys() == plain.keys() - {"masked_spec_embed"}
    odd = {"wav2vec2.adapter.layers.0.weight": torch.zeros(1)}
    assert from_released(odd, config).keys() == {"adapter.layers.0.weight"}


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("hidden_size", 768, "encoder.pos_conv_embed"),
        ("num_hidden_layers", 12, "encoder.layers"),
        ("conv_dim", [8] * 6, "feature_extractor.conv_layers"),
        ("conv_kernel", [10, 3, 3, 3, 3, 2, 3], "feature_extractor.conv_layers"),
        ("feat_extract_norm", "layer", "feature_extractor.conv_layers"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(field: str, value: object, tensor: str):
    shapes = {name: tuple(t.shape) for name, t in reference_model(GROUP).state_dict().items()}
    with pytest.raises(CheckpointError, match=f"`{field}` of config.json contradicts the tensor `{tensor}"):
        SpeechEncoderConfig.from_tensors(shapes, SIZES | GROUP | {field: value})


def test_inconsistent_sizes_are_refused():
    shapes = {name: tuple(t.shape) for name, t in reference_model(GROUP).state_dict().items()}
    with pytest.raises(CheckpointError, match="16 channels for 5 heads"):
        SpeechEncoderConfig.from_tensors(shapes, SIZES | GROUP | {"num_attention_heads": 5})
    with pytest.raises(CheckpointError, match=r"`conv_stride`.*7 numbers"):
        SpeechEncoderConfig.from_tensors(shapes, SIZES | GROUP | {"conv_stride": [5, 2, 2]})
    del shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"]
    with pytest.raises(CheckpointError, match=r"intermediate_dense\.weight`.*missing"):
        SpeechEncoderConfig.from_tensors(shapes, SIZES | GROUP)


def test_a_recording_shorter_than_one_feature_is_refused(model: SpeechEncoder):
    assert model.config.receptive_field == 400
    for audio, frames in ((torch.zeros(399), 1), (torch.zeros(0), 1), (torch.zeros(2, 16_000), 25)):
        with pytest.raises(MediaError, match="too short"):
            model(audio, frames)
    with pytest.raises(MediaError, match="too short"):
        model(torch.zeros(16_000), 0)


def test_silence_gives_finite_states(model: SpeechEncoder):
    assert model(torch.zeros(RATE), 25).isfinite().all()
