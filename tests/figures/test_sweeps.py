"""Figures of a sweep show the numbers of its table."""

import numpy as np
import polars
import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.figures import sweeps
from talkinghead_lab.figures.sweep_grid import grid_video
from talkinghead_lab.media import video
from talkinghead_lab.sweeps.statistics import paired_differences


@pytest.fixture
def table(tmp_path) -> polars.DataFrame:
    """Two axes of two values, three seeds; quality is text + 10 · audio + seed. Each video is one grey."""
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
                    "seconds_per_frame": text, "video_path": path.name,
                }
                for seed in (-1, 0, 1)
            ]  # fmt: skip
    return polars.DataFrame(rows)


@pytest.fixture
def two_methods(table) -> polars.DataFrame:
    """The same runs with two methods; the quality of the second is higher by 100."""
    more = table.with_columns(method=polars.lit("new"), quality=polars.col("quality") + 100)
    return polars.concat([table.with_columns(method=polars.lit("old")), more])


def test_heat_map(table):
    figure = sweeps.heat_map(table, "audio_guide_scale", "text_guide_scale", "quality")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[31, 41], [32, 42]]
    # Three values 1 apart: Student's t of 4.303 on 2 degrees, times 1 / √3.
    assert axes.texts[0].get_text() == "31\n±2"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "4"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("audio guidance", "text guidance")
    assert figure.axes[1].get_ylabel() == "quality", "the colour bar"
    assert "Student's t), 3 runs each" in figure.texts[-1].get_text()


def test_a_third_axis_gives_panels_with_a_shared_scale(two_methods):
    figure = sweeps.heat_map(
        two_methods, "audio_guide_scale", "text_guide_scale", "quality", "method", "bootstrap"
    )
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["old", "new"]
    assert second.get_array().tolist() == [[131, 141], [132, 142]]
    assert first.get_clim() == second.get_clim() == (31, 142)
    assert "BCa bootstrap" in figure.texts[-1].get_text()


def test_curves_with_bands(table):
    figure = sweeps.curves(table, "audio_guide_scale", "quality", "text_guide_scale")
    first, second = figure.axes[0].lines
    assert first.get_ydata().tolist() == [31, 41]
    assert second.get_ydata().tolist() == [32, 42]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(31 - 2.484, abs=1e-3)


def test_curves_in_panels(two_methods):
    figure = sweeps.curves(two_methods, "audio_guide_scale", "quality", "text_guide_scale", "method")
    assert [axes.get_title() for axes in figure.axes] == ["method old", "method new"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [131, 141]


def test_an_axis_of_equal_ratios_is_logarithmic(table):
    doubled = table.with_columns(polars.col("audio_guide_scale").replace({3.0: 4.0, 4.0: 8.0}))
    third = doubled.filter(audio_guide_scale=4.0).with_columns(audio_guide_scale=16.0)
    axes = sweeps.curves(polars.concat([doubled, third]), "audio_guide_scale", "quality").axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "8", "16"]


def test_quality_against_time(table):
    axes = ["text_guide_scale", "audio_guide_scale"]
    figure = sweeps.quality_against_time(table, axes, "quality")
    (front,) = figure.axes[0].lines
    assert (front.get_xdata().tolist(), front.get_ydata().tolist()) == ([1, 2], [41, 42])
    assert figure.axes[0].get_xlabel() == "time per frame of video (s)"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["1  text 1, audio 4", "2  text 2, audio 4"]


def test_the_front_follows_the_direction_of_the_measure(table):
    axes = ["text_guide_scale", "audio_guide_scale"]
    errors = table.rename({"quality": "lip_error"})
    (front,) = sweeps.quality_against_time(errors, axes, "lip_error").axes[0].lines
    assert (front.get_xdata().tolist(), front.get_ydata().tolist()) == ([1], [31])


def test_significant_paired_differences_have_another_colour(two_methods):
    base = {"method": "old", "audio_guide_scale": 3.0, "text_guide_scale": 1.0}
    noisy = two_methods.with_columns(quality=polars.col("quality") + polars.col("seed") ** 2 * 2)
    noisy = noisy.with_columns(
        quality=polars.when(text_guide_scale=2.0).then("quality").otherwise(two_methods["quality"])
    )
    found = paired_differences(noisy, [*base], "quality", base)
    figure = sweeps.differences(found, "quality", base)
    axes = figure.axes[0]
    places = {tick.get_text(): number for number, tick in enumerate(axes.get_yticklabels())}
    points = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    shown = {name: points[number] for name, number in places.items()}
    assert shown["new, audio 3, text 1"].get_xdata() == [100]
    assert shown["new, audio 3, text 1"].get_color() != shown["old, audio 3, text 2"].get_color()
    assert axes.get_xlabel() == "difference from old, audio 3, text 1"


def test_grid_of_videos(table, tmp_path):
    path = grid_video(table, tmp_path, "audio_guide_scale", "text_guide_scale", width=48)
    assert path == tmp_path / "grid.mp4"
    facts = video.probe(path)
    assert (facts.width, facts.height, facts.frame_count) == (96, 2 * (32 + 22), 5)
    assert facts.audio_seconds == pytest.approx(0.2)
    frame = next(video.read_frames(path))
    greys = [frame[row + 16, column + 24].mean() for row in (22, 76) for column in (0, 48)]
    assert greys == pytest.approx([80, 110, 40, 70], abs=4)


def test_a_damaged_video_is_a_grey_place_in_the_grid(table, tmp_path):
    damaged = tmp_path / "1.0-3.0.mp4"
    damaged.write_bytes(damaged.read_bytes()[:300])
    path = grid_video(table, tmp_path, "audio_guide_scale", "text_guide_scale", width=48)
    frame = next(video.read_frames(path))
    greys = [frame[row + 16, column + 24].mean() for row in (22, 76) for column in (0, 48)]
    assert greys == pytest.approx([80, 110, 213, 70], abs=4)


def test_labels_are_shown_as_they_are_written(table, tmp_path):
    strange = table.with_columns(audio_guide_scale=polars.lit("$\\frac{ <b>&"))
    figure = sweeps.curves(strange, "audio_guide_scale", "quality", "text_guide_scale")
    assert "$\\frac{ &lt;b&gt;&amp;" in sweeps.save_figure(figure, tmp_path, "curve")[1].read_text()
    sweeps.heat_map(strange, "audio_guide_scale", "text_guide_scale", "quality")._repr_png_()


def test_a_long_label_fits_its_own_video(table, tmp_path):
    longer = table.with_columns(audio_guide_scale=polars.lit("a method with quite a long name"))
    path = grid_video(longer, tmp_path, "audio_guide_scale", "text_guide_scale", width=160)
    label = next(video.read_frames(path))[:22]
    assert label[:, :150].min() < 100
    assert label[:, 157:].min() > 200


def test_figures_are_saved_as_png_and_svg(table, tmp_path):
    figure = sweeps.curves(table, "audio_guide_scale", "quality")
    png, svg = sweeps.save_figure(figure, tmp_path, "curve")
    assert int.from_bytes(png.read_bytes()[16:20]) == 300 * 5.4
    assert "audio guidance" in svg.read_text()
    assert sweeps.save_figure(figure, tmp_path, "curve") == [png, svg]


def test_without_a_finished_run_figures_raise(table):
    failed = table.with_columns(state=polars.lit("failed"))
    with pytest.raises(InvalidRequest, match="no finished run"):
        sweeps.heat_map(failed, "audio_guide_scale", "text_guide_scale", "quality")
    with pytest.raises(InvalidRequest, match="no run is finished"):
        grid_video(failed, ".", "audio_guide_scale")


LORAS = {"old": "[]", "new": '[{"path": "/w/fast.safetensors", "scale": 0.5}]'}


def test_axes_that_hold_lists_are_in_words(two_methods):
    table = two_methods.with_columns(
        loras=polars.col("method").replace_strict(LORAS), use_apg=polars.col("text_guide_scale") > 1
    ).drop("method", "text_guide_scale")
    figure = sweeps.heat_map(table, "loras", "use_apg", "quality", "audio_guide_scale")
    (first, second), (across, up) = figure.axes[:2], ("get_xticklabels", "get_yticklabels")
    assert [tick.get_text() for tick in getattr(first, across)()] == [
        "none",
        "fast.safetensors (strength 0.5)",
    ]
    assert [tick.get_text() for tick in getattr(first, up)()] == ["no", "yes"]
    assert [axes.get_title() for axes in (first, second)] == ["audio 3", "audio 4"]
    axes = ["audio_guide_scale", "use_apg", "loras"]
    figure = sweeps.quality_against_time(table, axes, "quality", "loras")
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[:2] == ["none", "fast.safetensors (strength 0.5)"]
    assert words[-1].endswith(
        "audio 4, adaptive projected guidance (APG) yes, LoRAs fast.safetensors (strength 0.5)"
    )
