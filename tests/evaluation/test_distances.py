"""FID, KID, FVD and KVD of scored videos, with random weights in place of the published ones."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from talkinghead_lab.errors import CheckpointError, OutputError
from talkinghead_lab.evaluation import distances, scoring, set_features
from talkinghead_lab.evaluation.manifest import mouth_truth
from talkinghead_lab.evaluation.scoring import Score, score_tasks
from talkinghead_lab.evaluation.set_features import CLIPS, FRAMES, MOTION, FeatureKind, write_features
from talkinghead_lab.evaluation.statistics import FrameSets
from talkinghead_lab.evaluation.systems import REAL, WRONG
from talkinghead_lab.evaluation.table import benchmark_table, to_frame, to_markdown
from talkinghead_lab.measures import judge, lips
from talkinghead_lab.measures.cartoon_faces import FRAMES_AT_ONCE, MouthReader
from talkinghead_lab.measures.given_weights import GIVEN_WEIGHTS, I3D, INCEPTION
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.media.video import evenly_spaced_numbers
from talkinghead_lab.models.judges import face_reader
from talkinghead_lab.models.judges.presenters import presenter_components
from talkinghead_lab.workers.worker import Worker
from tests.evaluation.faults import clips, drawn, frozen, scored
from tests.measures.given import give
from tests.models.judges.test_inception import seeded_inception


class StandIn(torch.nn.Module):
    """A small network with the signature of the published I3D."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(3, 8, (5, 8, 8), (2, 8, 8)),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool3d((2, 5, 5)),
        )
        self.readout = torch.nn.Linear(400, 400)

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        assert not rescale and not resize and return_features
        assert x.shape[1:] == (3, 16, 224, 224)
        return self.readout(self.layers(x).flatten(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(seeded_inception().state_dict(), folder / "inception.pth")
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(torch.jit.script(StandIn()), folder / "i3d.pt")
    return folder


@pytest.fixture(autouse=True)
def none_given(monkeypatch):
    for weights in GIVEN_WEIGHTS:
        monkeypatch.delenv(weights.variable, raising=False)
    yield
    set_features._inception.cache_clear()
    set_features._i3d.cache_clear()


def test_distances_are_taken_with_the_weights_and_said_to_be_missing_without(tmp_path, files, monkeypatch):
    give(monkeypatch, INCEPTION, files / "inception.pth")
    give(monkeypatch, I3D, files / "i3d.pt")
    monkeypatch.setattr(set_features, "SAMPLED_FRAMES", 2)
    manifest = clips(tmp_path / "clips", 3, 33)
    rows = scored(tmp_path, manifest, ("blurred",))
    found = {(row.system, row.measure): row for row in rows if row.why_not is None}
    for kind, samples in ((FRAMES, 6), (CLIPS, 6)):
        assert {system for system, measure in found if measure == kind.frechet} == {REAL, "a-copy", "blurred"}
        assert (REAL, kind.kernel) not in found  # a half of three people has no pair of different ones
        for measure in (kind.frechet, kind.kernel):
            copy, blurred = (found[name, measure].interval.value for name in ("a-copy", "blurred"))
            assert abs(copy) < 1e-3 * blurred
        assert found["blurred", kind.frechet].samples == samples
        assert found["blurred", kind.frechet].weights == {kind.weights.variable: kind.weights.digest()}
    text = to_markdown(rows)
    assert "fid of 2 frames of 3 people is biased upwards: it needs 10000 frames" in text
    assert "fvd of 2 windows of 3 people is biased upwards: it needs 2048 windows" in text
    assert f"fvd, kvd: I3D_MODEL {I3D.digest()}" in text
    assert f"I3D_MODEL={I3D.digest()}" in to_frame(rows)["weights"].to_list()

    monkeypatch.delenv(I3D.variable)
    scores = tmp_path / "out/systems/blurred/scores"
    for task in score_tasks(scores, manifest, lambda clip: tmp_path / f"blurred/{clip.id}.mp4"):
        assert not task.is_done
        task.run(Worker())
    rows = benchmark_table(tmp_path / "out", "a-copy")
    rows_with = [row for row in rows if row.why_not is None]
    assert {row.system for row in rows_with if row.measure == "fvd"} == {REAL, "a-copy"}
    assert {row.system for row in rows_with if row.measure == "fid"} == {REAL, "a-copy", "blurred"}
    assert WRONG not in {row.system for row in rows if row.measure == "fid"}
    assert "fvd, kvd: not taken of blurred: I3D_MODEL did not name i3d_torchscript.pt" in to_markdown(rows)
    (lacking,) = to_frame(rows).filter(system="blurred", measure="fvd").to_dicts()
    assert lacking["value"] is None
    assert lacking["why_not"].startswith("I3D_MODEL did not name")
    assert "csim: not taken of any video: " in to_markdown(rows)


def test_the_formula_is_that_of_the_released_evaluation(tmp_path):
    """With the square root of SciPy, as StyleGAN-V's evaluation takes it."""
    rng = np.random.default_rng(0)
    kind = FeatureKind("i3d", "fvd", "kvd", 6, 0, "windows", I3D)
    sets = [rng.normal(size=(12, 4, 6)), rng.normal(0.3, 1.5, size=(12, 4, 6))]
    scores = [Score(f"clip{number}", f"person{number}", {}) for number in range(12)]
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, features in zip(folders, sets, strict=True):
        folder.mkdir()
        for score, own in zip(scores, features, strict=True):
            write_features(folder / f"{score.clip}.safetensors", {"i3d": own.astype(np.float32)})
    found = distances.set_distances(kind, scores, folders[0], scores, folders[1])
    flat = [features.astype(np.float32).astype(float).reshape(-1, 6) for features in sets]
    mean, other = (features.mean(0) for features in flat)
    cov, other_cov = (np.cov(features.T) for features in flat)
    wanted = np.square(mean - other).sum() + np.trace(cov + other_cov - 2 * sqrtm(cov @ other_cov).real)
    assert found.frechet.value == pytest.approx(wanted, rel=1e-9)
    assert found.frechet.low is None
    assert found.kernel.low < found.kernel.value < found.kernel.high
    assert found.samples == 48


def test_of_many_samples_the_kernel_takes_some_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "KERNEL_SAMPLES", 10)
    kind = FeatureKind("i3d", "fvd", "kvd", 1, 0, "windows", I3D)
    scores = [Score(f"clip{number}", "somebody", {}) for number in range(10)]
    for number, score in enumerate(scores):
        features = np.arange(4, dtype=np.float32)[:, None] + 4 * number
        write_features(tmp_path / f"{score.clip}.safetensors", {"i3d": features})
    taken = distances._read(kind, scores, tmp_path)
    assert taken.samples["somebody"].ravel().tolist() == list(range(0, 40, 4))
    assert taken.moments.count == 40


def test_of_many_drawn_samples_the_kernel_takes_some_and_the_frechet_distance_all(tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "KERNEL_SAMPLES", 10)
    rng = np.random.default_rng(2)
    kind = FeatureKind("motion", "drawn_fvd", "drawn_kvd", 3, 0, "windows")
    scores = [Score(f"clip{number:02}", f"person{number:02}", {}) for number in range(12)]
    sets = [rng.normal(shift, size=(12, 4, 3)).astype(np.float32) for shift in (0, 1)]
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, features in zip(folders, sets, strict=True):
        folder.mkdir()
        for score, own in zip(scores, features, strict=True):
            write_features(folder / f"{score.clip}.safetensors", {"motion": own})
    found = distances.set_distances(kind, scores, folders[0], scores, folders[1])
    one, other = ([own.astype(float) for own in features] for features in sets)
    assert found.frechet == FrameSets(one, other).frechet_distance()
    fifths = [  # of 48 samples in a row, as at most 10 are wanted
        [np.array([own[i] for i in range(4) if (4 * person + i) % 5 == 0]).reshape(-1, 3)
         for person, own in enumerate(groups)]
        for groups in (one, other)
    ]  # fmt: skip
    assert found.kernel == FrameSets(*fifths).kernel_distance()


def test_windows_are_apart_and_span_the_clip():
    assert set_features.window_starts(15) == []
    assert set_features.window_starts(16) == [0]
    assert set_features.window_starts(33) == [0, 17]
    for frames in range(64, 300):
        starts = set_features.window_starts(frames)
        assert starts[0] == 0 and starts[-1] == frames - 16
        assert min(np.diff(starts)) >= 16
    assert len(set_features.window_starts(64)) == 4


def test_a_window_is_resized_as_a_whole_to_values_of_one():
    """A picture of two halves stays one of two halves, whatever its shape."""
    window = np.zeros((16, 40, 90, 3), np.uint8)
    window[:, :, 45:, 0] = 255
    given = set_features.i3d_input(window)
    assert given.shape == (1, 3, 16, 224, 224)
    assert given[0, 0, :, :, :110].unique().tolist() == [-1.0]
    assert given[0, 0, :, :, 114:].numpy() == pytest.approx(1.0)
    assert given[0, 1:].unique().tolist() == [-1.0]


def components(frames):
    """Where frames uint8 [F, H, W, 3] lie along the presenters' principal components."""
    reader = MouthReader()
    for pixels in frames:
        reader.add(pixels)
    return reader.components()


def test_one_reading_of_each_frame_serves_mouths_and_distances(tmp_path, monkeypatch):
    """The results are those of one pass for each, to the bit."""
    clip = clips(tmp_path / "clips", 2, 33).clips[0]
    pixels = np.stack([np.array(picture) for picture in DrivingVideo(clip.video).frames(0, 33)])
    batches = to_unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2)).split(FRAMES_AT_ONCE)
    opening = torch.cat([face_reader.read_faces(batch)[:, 0] for batch in batches]).double().clamp(0, 1)
    lying = torch.cat([presenter_components(face_reader.face_features(batch)) for batch in batches]).numpy()

    read = []
    counter = face_reader._reader().features.register_forward_hook(lambda *call: read.append(len(call[2])))
    (score,) = scoring.score_clip(clip, [clip], clip.video, cartoon=True)
    counter.remove()
    portrait_and_frames = 1 + judge.FRAMES_FOR_IDENTITY  # of which `identity` takes features of its own
    assert sum(read) == 33 + portrait_and_frames
    truth = mouth_truth(clip)
    assert score.measures["lip_error"] == lips.lip_error(opening.numpy(), truth)
    assert score.measures["lip_correlation"] == lips.lip_correlation(opening.numpy(), truth)
    sampled = evenly_spaced_numbers(33, set_features.SAMPLED_FRAMES)
    assert np.array_equal(score.features["presenters"], lying[sampled])
    moving = [set_features.motion_features(lying[start : start + 16]) for start in (0, 17)]
    assert np.array_equal(score.features["motion"], np.stack(moving))


def test_motion_is_told_from_none_and_from_jumps_whoever_moves():
    shown = drawn(0, 0, 16)
    shown_by_another = set_features.motion_features(components(drawn(2, 0, 16)))
    shuffled = shown[np.random.default_rng(0).permutation(16)]
    shown_ones = (shown, frozen(0, 16), shuffled)
    moving, still, jumping = (set_features.motion_features(components(frames)) for frames in shown_ones)
    assert not still.any()
    apart = np.linalg.norm(moving - shown_by_another)
    assert np.linalg.norm(moving) > 2 * apart
    assert np.linalg.norm(jumping[32:]) > 1.5 * np.linalg.norm(moving[32:])  # acceleration


def test_drawn_kvd_sees_how_people_move_and_not_who_moves():
    people, frames = 8, 32
    real = [drawn(number, 100 + number, frames) for number in range(people)]
    place = np.arange(frames)
    rng = np.random.default_rng(0)
    made = {
        "other motions": [drawn(number, 500 + number, frames) for number in range(people)],
        "other people": [drawn(people + number, 100 + number, frames) for number in range(people)],
        "out of place": [each[(place + rng.integers(-2, 3, frames)).clip(0, frames - 1)] for each in real],
        "frozen": [each[:1].repeat(frames, 0) for each in real],
        "shuffled": [each[rng.permutation(frames)] for each in real],
    }

    def features(videos):
        return [
            set_features.drawn_features(components(each), frames)["motion"].astype(float) for each in videos
        ]

    far = {
        name: FrameSets(features(real), features(videos)).kernel_distance().value
        for name, videos in made.items()
    }
    by_chance = max(far["other motions"], far["other people"])
    assert by_chance < far["out of place"] < far["frozen"] < far["shuffled"]


def test_other_weights_are_never_loaded(tmp_path, files, monkeypatch):
    """TorchScript may run code, so a wrong file must not reach its loader."""
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setenv(I3D.variable, str(files / "i3d.pt"))
    with pytest.raises(CheckpointError, match="I3D_MODEL names other weights"):
        set_features.i3d_features(np.zeros((16, 8, 8, 3), np.uint8))
    monkeypatch.setenv(INCEPTION.variable, str(files / "i3d.pt"))
    with pytest.raises(CheckpointError, match="INCEPTION_MODEL names other weights"):
        set_features.inception_features(np.zeros((8, 8, 3), np.uint8))


def test_a_damaged_file_of_features_is_told(tmp_path):
    (tmp_path / "clip.safetensors").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"cannot be read.*clip.safetensors"):
        set_features.stored_features(tmp_path, "clip", MOTION)
    assert set_features.stored_features(tmp_path, "none", MOTION) is None
