"""Measures of pixels give known figures for known videos."""

import numpy as np
import pytest

from talkinghead_lab.measures.frames import LumaChanges, color_drift, flicker, seam_jump
from tests.measures.videos import grey, statistics_of, write


def test_frames_that_change_by_known_amounts(tmp_path):
    levels = np.array([100] * 10 + [130] * 10)
    frames = statistics_of(write(tmp_path / "step.mp4", grey(levels)))
    assert frames.luma == pytest.approx(levels, abs=1.5)
    assert frames.change[9] == pytest.approx(30, abs=1.5)
    assert max(frames.sharpness) < 1
    # From CIE L* of the two greys: 42.37 and 54.09.
    drift = color_drift(frames)
    assert (drift.unit, drift.better) == ("ΔE", "lower")
    assert drift.value == pytest.approx(54.09 - 42.37, abs=0.6)


def test_flicker_counts_jitter_but_no_fade(tmp_path):
    fade = statistics_of(write(tmp_path / "fade.mp4", grey(np.arange(60, 100, 2))))
    jitter = statistics_of(write(tmp_path / "jitter.mp4", grey([90, 100] * 10)))
    assert flicker(fade).value < 1.5
    assert flicker(jitter).value == pytest.approx(20, abs=2)


def test_a_jump_at_a_seam_stands_out():
    changes = [2.0] * 19
    changes[9] = 10.0
    assert seam_jump(changes, [10]).value == 5.0
    assert seam_jump(changes, [5]).value == 1.0
    assert seam_jump(changes, []).why_not == "the video is one chunk"
    assert seam_jump([0.0] * 19, [10]).why_not == "the picture does not change between the seams"
    assert "an earlier version made some of the chunks" in seam_jump(None, [10]).why_not


def test_changes_of_luma_go_on_from_an_earlier_frame():
    frames = np.full((4, 8, 8, 3), 100, np.uint8)
    frames[2:, :4] = 110  # half of the picture
    whole, rest = LumaChanges(), LumaChanges(before=frames[1])
    for number, frame in enumerate(frames):
        whole.add(frame)
        if number > 1:
            rest.add(frame)
    assert whole.values == pytest.approx([0, 5, 0], abs=1e-4)
    assert rest.values == whole.values[1:]


def test_a_blurred_video_is_less_sharp(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 1)).repeat(3, -1)
    coarse = noise[:, ::4, ::4].repeat(4, 1).repeat(4, 2)
    sharp, blurred_ = (
        np.mean(statistics_of(write(tmp_path / name, frames)).sharpness)
        for name, frames in (("sharp.mp4", noise), ("blurred.mp4", coarse))
    )
    assert sharp > 2 * blurred_
