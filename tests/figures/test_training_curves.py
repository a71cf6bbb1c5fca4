"""The curves of the shipped weights, as a notebook shows them."""

from talkinghead_lab.figures.training_curves import TITLES, plot_curves
from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.training.train import STAGES


def test_every_stage_has_a_curve_which_a_notebook_shows():
    figure = plot_curves(EMBEDDED_FOLDER / "weights" / "training")
    assert [*TITLES] == [*STAGES]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [*TITLES.values()]
    for axes in figure.axes:
        (line,) = axes.get_lines()
        assert line.get_ydata()[-1] <= line.get_ydata()[0]
    picture, size = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert size["width"] > 1000
