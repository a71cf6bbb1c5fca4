"""SyncNet's evaluation on random weights in the released layout: shapes, shifts, crops, refusals."""

import numpy as np
import pytest
import torch

from talkinghead_lab.errors import CheckpointError, MediaError
from talkinghead_lab.measures import syncnet_scores
from talkinghead_lab.measures.given_weights import SYNCNET
from talkinghead_lab.measures.syncnet_faces import FaceTrack
from talkinghead_lab.media.audio import read_soundtrack
from talkinghead_lab.models.judges.syncnet import SyncNet
from tests.measures.given import give
from tests.measures.videos import grey, write


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """As the released file is: tensors by name, without the counters of newer PyTorch."""
    torch.manual_seed(0)
    tensors = SyncNet().state_dict()
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save({name: tensor for name, tensor in tensors.items() if not name.endswith("_tracked")}, path)
    return path


def test_the_layout_is_the_released_one():
    """Sizes from the released code."""
    shapes = {name: tuple(tensor.shape) for name, tensor in SyncNet().state_dict().items()}
    assert shapes["netcnnaud.0.weight"] == (64, 1, 3, 3)
    assert shapes["netcnnaud.18.weight"] == (512, 256, 5, 4)
    assert shapes["netcnnlip.0.weight"] == (96, 3, 5, 7, 7)
    assert shapes["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert shapes["netfcaud.3.weight"] == shapes["netfclip.3.weight"] == (1024, 512)


def test_windows_of_both_kinds_become_points_of_one_space(weights_file):
    network = syncnet_scores.load_syncnet(weights_file)
    assert network.embed_sound(torch.randn(2, 1, 13, 20)).shape == (2, 1024)
    assert network.embed_face(torch.rand(2, 3, 5, 224, 224) * 255).shape == (2, 1024)


@pytest.mark.parametrize("shift", [-11, 0, 4])
def test_sound_that_comes_late_is_found(weights_file, shift):
    """The sound's own embeddings, about their mean, stand for the lips so many frames earlier."""
    network = syncnet_scores.load_syncnet(weights_file)
    heard = network.embed_sound(torch.randn(60, 1, 13, 20, generator=torch.Generator().manual_seed(1)))
    heard -= heard.mean(0)
    scores = syncnet_scores.best_shift(heard.roll(-shift, 0), heard)
    assert scores.shift == shift
    unlike = syncnet_scores.best_shift(heard.flip(0), heard)
    assert unlike.distance > 2 * scores.distance
    assert unlike.confidence < scores.confidence / 2


def test_the_search_gives_the_figures_of_the_definition():
    seen, heard = torch.randn(2, 9, 4).unbind(0)
    padded = torch.cat([torch.zeros(2, 4), heard, torch.zeros(2, 4)])
    by_hand = [(seen - padded[k : k + 9] + 1e-6).norm(dim=1).mean() for k in range(5)]
    scores = syncnet_scores.best_shift(seen, heard, largest=2)
    assert scores.distance == pytest.approx(min(by_hand).item())
    assert scores.confidence == pytest.approx((sorted(by_hand)[2] - min(by_hand)).item())
    assert by_hand[scores.shift + 2] == min(by_hand)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("netfclip.3.bias"), "1 tensors are missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "1 tensors are unexpected"),
        (lambda tensors: tensors.update({"netfclip.3.bias": torch.zeros(256)}), "1 tensors are misshapen"),
    ],
)
def test_weights_of_another_network_are_refused(weights_file, tmp_path, change, message):
    tensors = torch.load(weights_file, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "wrong.model")
    with pytest.raises(CheckpointError, match=message):
        syncnet_scores.load_syncnet(tmp_path / "wrong.model")


def test_without_weights_the_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv(SYNCNET.variable, raising=False)
    track = FaceTrack(0, np.tile([10.0, 10, 30, 30], (10, 1)))
    with pytest.raises(CheckpointError, match=r"SYNCNET_MODEL is not set.*syncnet_v2.model"):
        syncnet_scores.SyncedLips.read(tmp_path / "a.mp4", track)


def test_a_crop_is_the_square_about_the_face(tmp_path):
    """A face of 20 pixels at (30, 26): its crop reaches 14 pixels aside, 10 above and 18 below."""
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[:, 16:44, 16:44] = (200, 100, 40)
    boxes = np.tile([20.0, 16, 40, 36], (3, 1))
    crops = syncnet_scores.face_crops(write(tmp_path / "face.mp4", frames), FaceTrack(0, boxes))
    assert crops.shape == (3, 3, 224, 224)
    assert crops.dtype == torch.uint8
    middle = crops[1, :, 20:-20, 20:-20].float()
    assert middle.mean((1, 2)).tolist() == pytest.approx([40, 100, 200], abs=6)  # blue, green, red
    assert middle.std((1, 2)).max() < 6
    at_the_edge = FaceTrack(0, boxes - 24)
    assert syncnet_scores.face_crops(tmp_path / "face.mp4", at_the_edge)[1, :, :8, :8].unique().tolist() == [
        110
    ]


def test_a_video_is_scored(weights_file, tmp_path, monkeypatch):
    pytest.importorskip("python_speech_features")
    give(monkeypatch, SYNCNET, weights_file)
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 20 * 1920)).astype(np.float32)
    path = write(tmp_path / "noise.mp4", grey(np.arange(60, 80)), sound)
    soundtrack = read_soundtrack(path)
    assert syncnet_scores.sound_cepstrum(soundtrack).shape[0] == 13
    boxes = np.tile([20.0, 20, 44, 44], (20, 1))
    lips = syncnet_scores.SyncedLips.read(path, FaceTrack(0, boxes))
    scores = syncnet_scores.sync_scores(lips, soundtrack)
    assert scores.distance > 0
    assert scores.confidence >= 0
    with pytest.raises(MediaError, match="shorter than a window"):
        syncnet_scores.SyncedLips.read(path, FaceTrack(0, boxes[:5]))
    with pytest.raises(MediaError, match="shorter than a window"):
        syncnet_scores.sync_scores(lips, soundtrack[:, : 5 * 1920])


def test_only_the_pictures_and_the_sound_of_the_track_count(weights_file, tmp_path, monkeypatch):
    pytest.importorskip("python_speech_features")
    give(monkeypatch, SYNCNET, weights_file)
    path = write(tmp_path / "grey.mp4", grey(np.arange(60, 110)))
    boxes = np.tile([20.0, 20, 44, 44], (50, 1))
    whole, later = (syncnet_scores.face_crops(path, FaceTrack(start, boxes[start:])) for start in (0, 8))
    assert torch.equal(whole[8:], later)
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 50 * 1920)).astype(np.float32)
    before, during = sound.copy(), sound.copy()
    before[:, : 8 * 1920] = 0
    during[:, 8 * 1920 : 20 * 1920] = 0
    lips = syncnet_scores.SyncedLips.read(path, FaceTrack(8, boxes[8:]))
    scores, same, other = (syncnet_scores.sync_scores(lips, wave) for wave in (sound, before, during))
    assert same == scores != other


def test_the_cepstrum_is_that_of_the_released_evaluation(tmp_path):
    """`python_speech_features.mfcc` with its own defaults, of 16-bit samples at 16 kHz."""
    features = pytest.importorskip("python_speech_features")
    seconds = np.arange(48_000) / 48_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * seconds) * np.sin(2 * np.pi * 2 * seconds)).astype(np.float32)
    path = write(tmp_path / "tone.mp4", grey([90] * 25), tone[None])
    wanted = features.mfcc((tone[::3] * 32768).round().astype(np.int16), 16_000)
    given = syncnet_scores.sound_cepstrum(read_soundtrack(path)).T.numpy()
    assert given.shape == wanted.shape == (99, 13)
    steady = slice(10, 90)  # away from the fades, where what AAC adds is all there is
    assert np.abs(given[steady, 0] - wanted[steady, 0]).max() < 0.2
