"""The notebook of the panel runs headless, without a warning, and takes back what the panel saved."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from talkinghead_lab.params import GenerationParams

ROOT = Path(__file__).parent.parent.parent
TINY = {"max_frames": 6, "chunk_frames": 5, "motion_frame": 1, "diffusion_steps": 1, "frame_size": "32x32"}


def papermill(folder: Path, file: Path, **parameters: object) -> dict[str, list]:
    """Run the notebook in `folder` with a parameter file; outputs of every cell, by the cell's id."""
    executed = folder / "executed.ipynb"
    given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", ROOT / "notebooks" / "05_tune.ipynb", executed),
            *("-f", file, *given, "--no-progress-bar"),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {cell["id"]: cell.get("outputs", []) for cell in nbformat.read(executed, 4).cells}


@pytest.mark.slow
def test_a_video_is_made_headless_and_what_is_saved_is_taken_back(tmp_path):
    preset = ROOT / "params" / "embedded.yaml"
    shown = papermill(tmp_path, preset, generate_at_once=True, seed=7, **TINY)
    assert "application/vnd.jupyter.widget-view+json" in shown["tuning-panel"][0]["data"]
    assert "<video" in shown["headless"][0]["data"]["text/html"]
    assert "finished" in shown["runs-table"][0]["data"]["text/html"]
    assert [output for cell in shown.values() for output in cell if output.get("name") == "stderr"] == []
    (run,) = (tmp_path / "outputs").glob("tune_*")
    request = GenerationParams.from_yaml(run / "request.yaml")
    assert (request.seed, request.frame_size) == (7, "32x32")

    # With fields at their defaults, where the notebook has defaults of its own.
    request = request.replace(text_guide_scale=5.0, sample_shift=None, frame_size="auto")
    saved = tmp_path / "saved.yaml"
    saved.write_text(request.to_yaml(complete=True))
    shown = papermill(tmp_path, saved)
    assert shown["headless"] == []
    assert yaml.safe_load(shown["request-text"][0]["text"]) == yaml.safe_load(request.to_yaml())
