"""Figures of a run show its actual pixels, samples and chunk borders."""

import base64

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from talkinghead_lab.figures import runs
from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.media.video import probe, write_video
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.result import GenerationResult

WIDTH, HEIGHT, FRAMES = 48, 32, 50


@pytest.fixture
def recording(tmp_path):
    """A video of two seconds with rising brightness: one second of a tone at half scale, one of silence."""
    path = tmp_path / "finished.mp4"
    tone = 0.5 * np.sin(2 * np.pi * 220 * np.arange(48_000) / 48_000)
    sound = np.concatenate([tone, np.zeros(48_000)])[None].astype(np.float32)
    brightness = np.linspace(0, 250, FRAMES).astype(np.uint8)
    pixels = np.broadcast_to(brightness[:, None, None, None], (FRAMES, HEIGHT, WIDTH, 3))
    write_video(path, [pixels], sound, FRAMES, {})
    return path


def vertical_lines(axes):
    return [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[-1]]


def test_inputs_are_drawn_with_chunk_borders(recording):
    params = GenerationParams(
        audio_path=str(recording),
        image_path="sample:portrait",
        frame_size="64x48",
        chunk_frames=21,
        motion_frame=5,
    )
    picture, frame, waveform = runs.portrait_and_waveform(params).axes
    assert picture.images[0].get_array().shape[:2] == (320, 320)
    assert picture.patches[0].get_bbox().bounds == (-0.5, 39.5, 320, 240)
    assert frame.images[0].get_array().shape[:2] == (48, 64)
    assert frame.get_xlabel() == "64 × 48 pixels"
    assert vertical_lines(waveform) == [21 / 25, 37 / 25]  # 50 frames: 21, then 16, then the last 13
    band = waveform.collections[0].get_paths()[0].vertices
    assert np.ptp(band[(band[:, 0] > 0.2) & (band[:, 0] < 0.9)][:, 1]) == pytest.approx(1.0, abs=0.1)
    assert np.ptp(band[band[:, 0] > 1.1][:, 1]) < 0.02


def test_two_speakers_share_a_time_axis_and_have_boxes(recording):
    params = GenerationParams(
        audio_path=str(recording), second_audio_path=str(recording), audio_mix="add",
        image_path="sample:portrait", speaker_boxes=((10, 20, 60, 90), (70, 20, 120, 95)),
    )  # fmt: skip
    picture, _, first, second = runs.portrait_and_waveform(params).axes
    kept, *boxes = [box.get_bbox().bounds for box in picture.patches]
    assert kept == (-0.5, -0.5, 320, 320)
    assert boxes == [(9.5, 19.5, 50, 70), (69.5, 19.5, 50, 75)]
    assert first.get_xlim() == second.get_xlim() == pytest.approx((0, 4), abs=0.1)


def test_frames_are_centred_on_their_times_above_the_sound(recording):
    result = GenerationResult(recording, 2.0, "48x32", FRAMES, {})
    figure = runs.frames_with_sound(result, frames=5)
    strip, sound = figure.axes
    assert strip.get_xlim() == sound.get_xlim() == (0, 2)
    middles = [np.mean(image.get_extent()[:2]) for image in strip.images]
    assert middles == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])
    shown = [np.asarray(image.get_array()).mean() for image in strip.images]
    assert shown == pytest.approx([250 * time * 25 / 49 for time in middles], abs=6)
    outline = sound.collections[0].get_paths()[0].vertices
    during_tone = outline[(outline[:, 0] > 0.2) & (outline[:, 0] < 0.8) & (outline[:, 1] > -60)]
    # A sine of amplitude 0.5 has 20 log10(0.5 / √2) = −9.03 dB; AAC takes up to 0.6 dB off single frames.
    assert during_tone[:, 1].mean() == pytest.approx(-9.03, abs=0.3)
    assert during_tone[:, 1] == pytest.approx(-9.03, abs=0.8)
    assert outline[outline[:, 0] > 1.2][:, 1].max() == -60
    figure.canvas.draw()
    width, height = strip.images[0].get_window_extent().size
    assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.03)


def test_notebook_figures_have_twice_the_screen_resolution(recording):
    result = GenerationResult(recording, 2.0, "48x32", FRAMES, {})
    picture, shown = runs.frames_with_sound(result)._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 2 * shown["width"] == 1920


def test_tables_escape_html_and_mark_missing_values():
    shown = runs.table(
        [{"file": "<b>", "gib": 1.23456, "remedy": None}, {"file": "a", "gib": 2, "remedy": ""}]
    ).data
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert ">1.235<" in shown
    assert ">—<" in shown
    assert shown.count("<tr>") == 3
    assert runs.table({"torch": "2"}).data.count("<tr>") == 2


def test_a_notebook_plays_the_video_while_it_grows_and_does_not_keep_it(tmp_path):
    path = tmp_path / "chunks" / "growing.mp4"
    path.parent.mkdir()
    block, sound = np.zeros((9, 32, 32, 3), np.uint8), np.zeros((1, 48_000), np.float32)
    InteractiveShell.instance()
    try:
        with (
            capture_output() as captured,
            runs.GrowingPlayer() as player,
            GrowingVideo(path, sound, 18) as growing,
        ):
            player(tmp_path)
            for number in range(2):
                write_video(tmp_path / f"{number}.mp4", [block], None, 9, {}, growing.add)
                growing.end_chunk()
                player(tmp_path)
    finally:
        InteractiveShell.clear_instance()
    texts = [output.data["text/html"] for output in captured.outputs]
    assert [text[:6] for text in texts] == ["", "<video", "<video", ""], "nothing before the first frames"
    lengths = []
    for text in texts[1:3]:
        (tmp_path / "shown.mp4").write_bytes(base64.b64decode(text.partition("base64,")[2].partition('"')[0]))
        lengths.append(probe(tmp_path / "shown.mp4").frame_count)
    assert lengths == [9, 18]
