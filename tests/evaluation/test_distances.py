"""FID and KID of scored videos, with random weights in place of the published ones."""

import numpy as np
import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.evaluation import inception_features, scoring
from talkinghead_lab.evaluation.systems import REAL, WRONG
from talkinghead_lab.evaluation.table import INCEPTION_DISTANCES, benchmark_table, to_markdown
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.runs.worker import Worker
from tests.evaluation.faults import clips, scored
from tests.models.judges.test_inception import seeded_inception


@pytest.fixture
def weights(tmp_path, monkeypatch):
    path = tmp_path / "inception.pth"
    torch.save(seeded_inception().state_dict(), path)
    monkeypatch.setenv(inception_features.VARIABLE, str(path))
    monkeypatch.setattr(inception_features, "SHA256", sha256_of_file(path))


def test_fid_and_kid_are_taken_with_the_weights_and_said_to_be_missing_without(
    tmp_path, weights, monkeypatch
):
    monkeypatch.setattr(scoring, "SAMPLED_FRAMES", 2)
    manifest = clips(tmp_path / "clips", 3, 8)
    rows = scored(tmp_path, manifest, ("blurred",))
    found = {(row.system, row.measure): row for row in rows if row.measure in INCEPTION_DISTANCES}
    assert {system for system, _ in found} == {REAL, "a-copy", "blurred"}
    assert (REAL, "kid") not in found  # a half of three people has no pair of different ones
    for measure in INCEPTION_DISTANCES:
        copy, blurred = (found[name, measure].interval.value for name in ("a-copy", "blurred"))
        assert abs(copy) < 1e-3 * blurred
    assert found["blurred", "fid"].frames == 6
    assert "fewer than 10000 frames, here 2" in to_markdown(rows)

    monkeypatch.delenv(inception_features.VARIABLE)
    scores = tmp_path / "out/systems/blurred/scores"
    for task in scoring.score_tasks(scores, manifest, lambda clip: tmp_path / f"blurred/{clip.id}.mp4"):
        task.run(Worker())
    rows = benchmark_table(tmp_path / "out", "a-copy")
    systems = {row.system for row in rows if row.measure == "fid"}
    assert systems == {REAL, "a-copy"}
    assert WRONG not in systems
    assert "fid, kid: not taken of blurred" in to_markdown(rows)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "inception.pth"
    path.write_bytes(b"other")
    monkeypatch.setenv(inception_features.VARIABLE, str(path))
    with pytest.raises(CheckpointError, match="not the weights that define FID"):
        inception_features.inception_features([np.zeros((8, 8, 3), np.uint8)])
