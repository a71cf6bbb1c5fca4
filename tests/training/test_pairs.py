"""Two presenters side by side: their voices and mouths, the regions, and the start of the adapter."""

import pytest
import torch

from talkinghead_lab.models.dit.audio_adapter import SPEAKER_RANGES, AudioCrossAttention
from talkinghead_lab.models.kernels.attention import Rotation, rotary_angles
from talkinghead_lab.training.corpus import Monologue
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.pairs import KINDS, ROOM, EncodedPairs, draw_pair, in_room_of, render_pairs
from talkinghead_lab.training.schedule import step_generator
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME, Voice
from talkinghead_lab.training.train import load_networks
from talkinghead_lab.training.train_pairs import SIDE, adapter_modules, random_regions
from talkinghead_lab.training.voice_binding import bind
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS
from tests.training.test_parts import numbered_videos

FRAMES = 100


def monologue(opening: torch.Tensor) -> Monologue:
    """A steady rising sound, and a mouth that opens as far as given for each frame [F]."""
    wave = torch.linspace(3000, 9000, len(opening) * SAMPLES_PER_FRAME).short()
    mouth = torch.nn.functional.pad(opening[:, None], (0, 4))
    return Monologue(Voice("", ""), (), wave, mouth)


@pytest.fixture
def maker() -> ClipMaker:
    """Clips in which everybody speaks all the time, with an open mouth."""
    return ClipMaker([monologue(torch.full((4 * FRAMES,), 0.5))], "train", 0, non_speech_share=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mouth_is_open_where_its_voice_is_heard_and_nowhere_else(maker, kind):
    pair = draw_pair(maker, FRAMES, kind)
    heard = pair.waves.unflatten(1, (FRAMES, -1)).abs().amax(dim=2) > 0
    assert torch.equal(heard, pair.openings > 0)
    speaking = heard.float().mean(dim=1).tolist()
    expected = {"both": [1, 1], "first": [1, 0], "second": [0, 1], "neither": [0, 0]}
    if kind == "turns":
        assert min(speaking) > 0 and (heard.sum(dim=0) > 1).float().mean() < 0.3
    else:
        assert speaking == expected[kind]


def test_each_half_shows_one_presenter(maker):
    pair = draw_pair(maker, 2, "neither")
    (video,) = render_pairs([pair], torch.device("cpu"))
    assert video.shape == (2, 3, 160, 320)
    left, right = video.split(160, dim=-1)
    (swapped,) = render_pairs([type(pair)(pair.right, pair.left)], torch.device("cpu"))
    assert torch.equal(swapped, torch.cat([right, left], dim=-1))
    guest = in_room_of(pair.right.identity, pair.left.identity)
    assert all(getattr(guest, name) == getattr(pair.left.identity, name) for name in ROOM)
    assert guest.hair == pair.right.identity.hair


def test_examples_have_both_voices_the_left_one_first():
    videos = vars(numbered_videos())
    videos.pop("talking_videos")
    single = videos.pop("speech")
    pairs = EncodedPairs(**videos, speech=torch.stack([single, -single], dim=3))
    windows = pairs.draw(20, step_generator(1, 0), window=5, drops=False).windows
    assert windows.shape == (20, 2, 81, 5, 1, 1)
    assert (windows[:, 0] > 0).all()
    assert torch.equal(windows[:, 1], -windows[:, 0])


def test_regions_are_of_one_person_each_or_of_all_the_rest():
    middles = torch.arange(2 * SIDE).expand(SIDE, -1) < SIDE
    kinds = set()
    for seed in range(60):
        regions = random_regions(step_generator(seed, 0))
        assert torch.equal(regions.amax(dim=0), torch.ones(SIDE, 2 * SIDE))
        assert regions[2].mul(regions[:2].amax(dim=0)).sum() == 0
        kinds.add(bool(regions[2].any()))
        if regions[2].any():
            assert not regions[0][~middles].any() and not regions[1][middles].any()
        assert regions[:2].flatten(1).sum(dim=1).min() >= 12
    assert kinds == {True, False}


def test_a_bound_adapter_attends_to_the_own_voice_from_the_start():
    torch.manual_seed(0)
    layer = AudioCrossAttention(192, 128, 3)
    shares = []
    for bound in (False, True):
        if bound:
            bind(layer)
        audio = torch.randn(1, 1, 16, 128)
        key, _ = layer.keys_values(audio, speakers=2)
        # A value of 1 for the first voice makes the output the share of attention that it gets.
        value = torch.zeros_like(key)
        value[:, :8] = 1
        positions = torch.cat([torch.linspace(*span, 5) for span in SPEAKER_RANGES])
        rotation = Rotation.from_angles(rotary_angles(positions, 64))
        layer.proj.weight.data, layer.proj.bias.data = torch.eye(192), torch.zeros(192)
        share = layer(torch.randn(1, 10, 192), (key, value), 1, rotation).out.mean(dim=-1).flatten()
        shares.append(torch.cat([share[:5], 1 - share[5:]]))
    assert shares[0].mean() < 0.7
    assert shares[1].min() > 0.9


def test_the_adapter_file_holds_what_is_trained():
    dit = load_networks(EMBEDDED_WEIGHTS).dit
    trained = sum(p.numel() for module in adapter_modules(dit) for p in module.parameters())
    state = dit.state_dict()
    assert trained == sum(
        value.numel() for name, value in state.items() if "audio" in name or "norm_x" in name
    )
