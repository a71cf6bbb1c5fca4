"""S3FD on random weights in the released layout, and the following of its faces from frame to frame."""

import numpy as np
import pytest
import torch

from talkinghead_lab.errors import CheckpointError, MediaError
from talkinghead_lab.measures import syncnet_faces
from talkinghead_lab.measures.given_weights import S3FD_FACES
from talkinghead_lab.models.judges.s3fd import S3FD
from tests.measures.given import give


def test_the_layout_is_the_released_one():
    """Names and sizes from the released code."""
    shapes = {name: tuple(tensor.shape) for name, tensor in S3FD().state_dict().items()}
    vgg = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
    assert {int(name.split(".")[1]) for name in shapes if name.startswith("vgg")} == set(vgg)
    assert shapes["vgg.31.weight"] == (1024, 512, 3, 3)
    assert shapes["extras.3.weight"] == (256, 128, 3, 3)
    assert shapes["L2Norm3_3.weight"] == (256,)
    assert [shapes[f"conf.{i}.weight"][0] for i in range(6)] == [4, 2, 2, 2, 2, 2]
    assert len(shapes) == 2 * (len(vgg) + 4 + 6 + 6) + 3


def test_an_anchor_without_shifts_is_four_steps_about_its_place():
    """Places are every 4, 8, … 128 pixels; the network's biases alone decide, as its weights are zero."""
    network = S3FD().requires_grad_(False)
    for head in (*network.loc, *network.conf):
        head.weight.zero_()
        head.bias.zero_()
    network.conf[0].bias[:] = torch.tensor([0.0, 2, 1, 3])  # the largest of three backgrounds counts
    network.conf[2].bias[:] = torch.tensor([0.0, 3])
    network.loc[2].bias[:] = torch.tensor([1.0, 0, 0, 5])  # a tenth of the size aside, e times as high
    scores, boxes = network(torch.zeros(1, 3, 64, 128))
    counts = [32 * 16, 16 * 8, 8 * 4, 4 * 2, 2 * 1, 1 * 1]
    assert len(scores) == len(boxes) == sum(counts)
    assert scores[0].item() == pytest.approx(1 / (1 + np.exp(-1)))
    assert (boxes[0] * torch.tensor([128.0, 64, 128, 64])).tolist() == pytest.approx([-6, -6, 10, 10])
    third = sum(counts[:2])
    assert scores[third].item() == pytest.approx(1 / (1 + np.exp(-3)))
    high = 32 * np.e
    assert (boxes[third] * torch.tensor([128.0, 64, 128, 64])).tolist() == pytest.approx(
        [8 + 6.4 - 32, 8 - high, 8 + 6.4 + 32, 8 + high], rel=1e-5
    )


def test_pictures_are_shrunk_as_opencv_does():
    """The middle four of every 4×4 pixels; at the edge, the last pixels again; halves are rounded up."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[1:3, 1:3] = [[[10], [20]], [[30], [42]]]
    pixels[5] = 77
    small = syncnet_faces.shrunk(pixels)
    assert small.shape == (2, 2, 3)
    assert small[0, 0].tolist() == [26.0] * 3  # 25.5
    assert small[1].tolist() == [[77.0] * 3] * 2


class Seen(torch.nn.Module):
    """Reports faces that a test chooses, as shares of the picture."""

    def __init__(self, faces):
        super().__init__()
        self.faces = torch.tensor(faces)

    def forward(self, picture):
        return self.faces[:, 0], self.faces[:, 1:]


def test_the_best_of_boxes_that_overlap_is_kept():
    faces = [
        [0.95, 0.1, 0.1, 0.5, 0.5],
        [0.99, 0.12, 0.1, 0.52, 0.5],  # the same face, better
        [0.93, 0.6, 0.6, 0.9, 0.9],
        [0.92, 0.5, 0.5, 0.8, 0.8],  # overlaps the one before by more than a tenth
        [0.89, 0.0, 0.8, 0.1, 0.9],  # not sure enough
    ]
    found = syncnet_faces.find_faces(Seen(faces), np.zeros((100, 200, 3), np.uint8))
    assert found == pytest.approx(np.array([[24, 10, 104, 50], [120, 60, 180, 90]]), abs=1e-4)


def boxes(*places):
    return np.array([[x, 100, x + 120, 220] for x in places], float).reshape(-1, 4)


def test_a_face_is_followed_over_gaps_and_told_from_another():
    found = [boxes(300 + n, 100) if n % 2 else boxes(100, 300 + n) for n in range(150)]
    found[40:50] = [boxes(300 + n) for n in range(40, 50)]  # one face is hidden for a while
    resting, moving = syncnet_faces.follow(found)
    assert resting.start == moving.start == 0
    assert resting.boxes == pytest.approx(np.tile(boxes(100), (150, 1)))
    assert moving.boxes[:, 0] == pytest.approx(300 + np.arange(150))


@pytest.mark.parametrize(("frames", "tracks"), [(100, 0), (101, 1)])
def test_a_track_is_longer_than_a_hundred_frames(frames, tracks):
    found = [boxes(100)] * frames + [boxes()] * (300 - frames)
    assert len(syncnet_faces.follow(found)) == tracks


def test_a_face_that_is_lost_for_long_is_another_one_and_small_ones_do_not_count():
    found = [boxes(100)] * 110 + [boxes()] * 26 + [boxes(100)] * 120
    assert [(track.start, len(track.boxes)) for track in syncnet_faces.follow(found)] == [
        (0, 110),
        (136, 120),
    ]
    assert syncnet_faces.follow([each * 0.8 for each in found]) == []


def test_the_longest_track_is_taken_and_its_lack_is_told(tmp_path, monkeypatch):
    weights = tmp_path / "sfd_face.pth"
    torch.manual_seed(0)
    network = S3FD()
    torch.save(network.state_dict(), weights)
    give(monkeypatch, S3FD_FACES, weights)
    finder = syncnet_faces.FaceFinder(40)
    seen = iter([boxes(100)] * 25 + [boxes()] * 15)
    monkeypatch.setattr(syncnet_faces, "find_faces", lambda network, pixels: next(seen))
    for _ in range(41):  # the last one is ignored
        finder.add(np.zeros((300, 300, 3), np.uint8))
    assert len(finder.track().boxes) == 25
    finder._found[20:] = [boxes()] * 20
    with pytest.raises(MediaError, match="20 of 40 frames with a face"):
        finder.track()
    monkeypatch.setenv(S3FD_FACES.variable, str(tmp_path))
    with pytest.raises(CheckpointError, match="names no file"):
        syncnet_faces.FaceFinder(40)
