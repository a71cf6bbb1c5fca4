"""A sweep's figures show the numbers of its table."""

import numpy as np
import polars
import pytest

from talkinghead_lab import sweep_plots, video
from talkinghead_lab.errors import InvalidRequest


@pytest.fixture
def table(tmp_path) -> polars.DataFrame:
    """Two axes of two values, three seeds; quality is text + 10 · audio + seed. Every video has its grey."""
    rows = []
    for text in (1.0, 2.0):
        for audio in (3.0, 4.0):
            path = tmp_path / f"{text}-{audio}.mp4"
            frames = np.full((5, 32, 48, 3), 40 * text + 30 * (audio - 3), np.uint8)
            video.write_video(path, [frames], np.zeros((1, 9600), np.float32), 5, {})
            rows += [
                {
                    "text_guide_scale": text, "audio_guide_scale": audio, "seed": seed, "portrait": "p",
                    "recording": "r", "state": "finished", "quality": text + 10 * audio + seed,
                    "seconds_per_frame": text, "video_path": str(path),
                }
                for seed in (-1, 0, 1)
            ]  # fmt: skip
    return polars.DataFrame(rows)


def test_heat_map(table):
    figure = sweep_plots.heat_map(table, "audio_guide_scale", "text_guide_scale", "quality")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[31, 41], [32, 42]]
    # Three values 1 apart: Student's t of 4.303 on 2 degrees, times 1 / √3.
    assert axes.texts[0].get_text() == "31\n± 2.5"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "4"]


def test_curves_with_bands(table):
    figure = sweep_plots.curves(table, "audio_guide_scale", "quality", "text_guide_scale")
    first, second = figure.axes[0].lines
    assert first.get_ydata().tolist() == [31, 41] and second.get_ydata().tolist() == [32, 42]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(31 - 2.484, abs=1e-3)


def test_quality_against_time(table):
    axes = ["text_guide_scale", "audio_guide_scale"]
    figure = sweep_plots.quality_against_time(table, axes, "quality")
    (front,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (front.get_xdata().tolist(), front.get_ydata().tolist()) == ([1, 2], [41, 42])
    assert figure.axes[0].texts[0].get_text() == "text 1, audio 4"


def test_videos_side_by_side(table, tmp_path):
    path = sweep_plots.grid_video(
        table, tmp_path / "grid.mp4", "audio_guide_scale", "text_guide_scale", width=48
    )
    facts = video.probe(path)
    assert (facts.width, facts.height, facts.frame_count) == (96, 2 * (32 + 22), 5)
    assert facts.audio_seconds == pytest.approx(0.2)
    frame = next(video.read_frames(path))
    greys = [frame[row + 16, column + 24].mean() for row in (22, 76) for column in (0, 48)]
    assert greys == pytest.approx([80, 110, 40, 70], abs=4)


def test_a_figure_is_saved_for_print_and_for_the_web(table, tmp_path):
    figure = sweep_plots.curves(table, "audio_guide_scale", "quality")
    png, svg = sweep_plots.save_figure(figure, tmp_path, "curve")
    assert int.from_bytes(png.read_bytes()[16:20]) == 300 * 6.4
    assert "audio guide scale" in svg.read_text()
    assert sweep_plots.save_figure(figure, tmp_path, "curve") == [png, svg]


def test_without_a_finished_run_there_is_no_figure(table):
    failed = table.with_columns(state=polars.lit("failed"))
    with pytest.raises(InvalidRequest, match="no finished run"):
        sweep_plots.heat_map(failed, "audio_guide_scale", "text_guide_scale", "quality")
    with pytest.raises(InvalidRequest, match="no run is finished"):
        sweep_plots.grid_video(failed, "grid.mp4", "audio_guide_scale")
