"""The panel's notebook runs headless without warnings and accepts the file that the panel saved."""

from pathlib import Path

import pytest
import yaml

from talkinghead_lab.params import GenerationParams
from tests.test_notebooks import ROOT, outputs, papermill

TINY = {"max_frames": 6, "chunk_frames": 5, "motion_frame": 1, "diffusion_steps": 1, "frame_size": "32x32"}


def open_panel(folder: Path, file: Path, **parameters: object) -> dict[str, list]:
    """Run the panel's notebook; return the outputs of its cells by cell id."""
    done, executed = papermill("05_tune", folder, parameters, file)
    assert done.returncode == 0, done.stderr
    return outputs(executed)


@pytest.mark.slow
def test_a_video_is_generated_headless_and_a_saved_request_is_accepted(tmp_path):
    preset = ROOT / "params" / "embedded.yaml"
    shown = open_panel(tmp_path, preset, generate_at_once=True, seed=7, **TINY)
    assert "application/vnd.jupyter.widget-view+json" in shown["tuning-panel"][0]["data"]
    assert "<video" in shown["headless"][0]["data"]["text/html"]
    assert "finished" in shown["runs-table"][0]["data"]["text/html"]
    assert [output for cell in shown.values() for output in cell if output.get("name") == "stderr"] == []
    (run,) = (tmp_path / "outputs").glob("tune_*")
    request = GenerationParams.from_yaml(run / "request.yaml")
    assert (request.seed, request.frame_size) == (7, "32x32")

    # Includes fields at their defaults, for which the notebook has other defaults.
    request = request.replace(text_guide_scale=5.0, sample_shift=None, frame_size="auto")
    saved = tmp_path / "saved.yaml"
    saved.write_text(request.to_yaml(complete=True))
    shown = open_panel(tmp_path, saved)
    assert shown["headless"] == []
    assert yaml.safe_load(shown["request-text"][0]["text"]) == yaml.safe_load(request.to_yaml())
