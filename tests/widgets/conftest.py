"""A panel with tiny networks in a temporary project."""

from collections.abc import Callable
from pathlib import Path

import pytest

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.widgets.panel import TuningPanel

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with the shipped parameter files, as the working directory."""
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def panel_for(project, request_for) -> Callable[..., TuningPanel]:
    """Open a panel with a small request; its run is stopped before the next test."""
    opened = []

    def open_panel(params: GenerationParams | None = None, **changes) -> TuningPanel:
        panel = TuningPanel(params or request_for(**changes))
        opened.append(panel)
        return panel

    yield open_panel
    for panel in opened:
        panel.stop()
        if panel.thread.job is not None:
            assert panel.thread.job.wait(60)
