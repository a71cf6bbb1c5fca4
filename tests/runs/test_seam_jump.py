"""A run measures the jump at seams on the frames before encoding, also where earlier calls made chunks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from talkinghead_lab import generate
from talkinghead_lab.errors import Stopped
from talkinghead_lab.media import video
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs import chunk_files
from talkinghead_lab.training import scores


@pytest.fixture(scope="module")
def pipeline(request_for) -> Pipeline:
    return Pipeline.load(request_for())


def seam_jump(run_dir: Path) -> dict:
    measures = json.loads((run_dir / "run.json").read_text())["measures"]
    return next(measure for measure in measures if measure["name"] == "seam_jump")


def made(params, run_dir, pipeline, on_progress=None) -> dict:
    generate(params, run_dir, pipeline=pipeline, on_progress=on_progress, show_progress=False)
    return seam_jump(run_dir)


def test_it_is_that_of_the_frames_before_encoding(pipeline, request_for, tmp_path, monkeypatch):
    frames, plain = [], video.write_video

    def kept(path, blocks, *rest):
        def seen():
            for block in blocks:
                frames.extend(block.copy())
                yield block

        plain(path, seen(), *rest)

    monkeypatch.setattr(chunk_files.video, "write_video", kept)
    monkeypatch.setitem(video.H264_OPTIONS, "crf", "40")
    found = made(request_for(max_frames=13), tmp_path / "run", pipeline)
    before = torch.from_numpy(np.stack(frames)).movedim(-1, 1)[None]
    assert found["value"] == pytest.approx(scores.seam_jumps(before, 9)[0], rel=1e-3)


def test_a_resumed_run_measures_the_same(pipeline, request_for, tmp_path):
    undisturbed = made(request_for(), tmp_path / "undisturbed", pipeline)
    assert undisturbed["value"] > 0
    with pytest.raises(Stopped):
        made(request_for(), tmp_path / "run", pipeline, lambda progress: progress.chunk < 3)
    assert made(request_for(), tmp_path / "run", pipeline) == undisturbed


def test_chunks_of_an_earlier_version_leave_it_unmeasured(pipeline, request_for, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(chunk_files, "LUMA_CHANGES", "another_fact")
        with pytest.raises(Stopped):
            made(request_for(), tmp_path / "run", pipeline, lambda progress: progress.chunk < 3)
    found = made(request_for(), tmp_path / "run", pipeline)
    assert found["value"] is None
    assert "an earlier version made some of the chunks" in found["why_not"]
