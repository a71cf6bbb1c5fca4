"""Notebooks run headless from any folder, reject unknown parameters, and agree with parameter files."""

import ast
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_text import read_yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRESETS = sorted(path for path in (ROOT / "params").glob("*.yaml") if not path.stem.startswith("sweep"))
TINY = {
    "seed": 7,
    "max_frames": 6,
    "chunk_frames": 5,
    "motion_frame": 1,
    "diffusion_steps": 1,
    "frame_size": "32x32",
}


def papermill(
    notebook: str, folder: Path, parameters: dict[str, object], file: Path = ROOT / "params" / "embedded.yaml"
) -> tuple[subprocess.CompletedProcess, Path]:
    """Run a notebook from a shell in `folder` with a parameter file; its outputs are written there."""
    executed = folder / f"{notebook}.ipynb"
    given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", ROOT / "notebooks" / f"{notebook}.ipynb", executed),
            *("-f", file, *given, "--no-progress-bar"),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done, executed


def outputs(executed: Path) -> dict[str, list]:
    """Outputs of every cell by cell id."""
    return {cell["id"]: cell.get("outputs", []) for cell in nbformat.read(executed, 4).cells}


def data(outputs: list, kind: str) -> str:
    """The first output with MIME type `kind`."""
    return next(output["data"][kind] for output in outputs if kind in output.get("data", {}))


def request_of_generate(parameters: dict[str, object]) -> GenerationParams:
    """The request that 01_generate builds from papermill's parameters; nothing is generated."""
    notebook = load_notebook_node(str(ROOT / "notebooks" / "01_generate.ipynb"))
    namespace: dict[str, object] = {}
    for cell in parameterize_notebook(notebook, parameters).cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
        if cell.id == "request":
            break
    return namespace["params"]


@pytest.mark.parametrize("notebook", ["01_generate", "05_tune"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_papermill_knows_every_parameter_of_a_preset(preset, notebook):
    """It warns of those that the parameter cell does not have, although the notebook reads them."""
    assert read_yaml(preset).keys() <= inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb")).keys()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_of_the_package_is_there(notebook):
    cells = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    statements = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    own = [
        each
        for each in statements
        if isinstance(each, ast.ImportFrom) and "talkinghead" in (each.module or "")
    ]
    assert own
    for each in own:
        exec(ast.unparse(each), {})


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_generate_builds_the_request_of_a_preset(preset):
    assert request_of_generate(read_yaml(preset)) == GenerationParams.from_yaml(preset)
    complete = GenerationParams.from_yaml(preset).to_yaml(complete=True)
    assert request_of_generate(yaml.safe_load(complete)) == GenerationParams.from_yaml(preset)


@pytest.mark.parametrize("given", [{}, {"seed": 7}, {"checkpoint": "released", "diffusion_steps": 8}])
def test_generate_leaves_what_a_parameter_file_omits_at_the_package_s_defaults(given):
    media = {"image_path": "sample:portrait-2", "audio_path": "sample:recording-2"}
    assert request_of_generate(media | given) == GenerationParams(**media, **given)


def test_generate_without_a_parameter_file_builds_the_request_of_the_embedded_preset():
    preset = ROOT / "params" / "embedded.yaml"
    assert request_of_generate({}) == GenerationParams.from_yaml(preset)
    changes = {"image_path": "sample:portrait-2", "seed": 7, "run_dir": "outputs/mine", "do_again": True}
    expected = GenerationParams.from_yaml(preset, image_path="sample:portrait-2", seed=7)
    assert request_of_generate(changes) == expected


@pytest.fixture(params=["", "notebooks"], ids=["from the project", "from notebooks/"])
def working_directory(request, tmp_path):
    folder = tmp_path / request.param
    folder.mkdir(exist_ok=True)
    if request.param:
        (folder / "01_generate.ipynb").touch()  # as in the project
    return folder


@pytest.mark.slow
def test_generate_shows_inputs_video_and_record(working_directory, tmp_path):
    done, executed = papermill("01_generate", working_directory, TINY | {"do_again": True})
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    for figure in ("inputs-figure", "frames-figure"):
        assert png_size(data(shown[figure], "image/png"), tmp_path)[0] > 1000
    texts = [
        output["data"]["text/html"] for output in shown["video"] if "text/html" in output.get("data", {})
    ]
    assert ["<video" in text for text in texts] == [False, True], "the growing video is cleared"
    measured, recorded = (output["data"]["text/html"] for output in shown["record-text"])
    assert "Mouth follows sound" in measured and "photographed faces" in measured, "its reason"
    assert ">Seed</td><td style='text-align:left'>7<" in recorded
    assert "Lora(" not in recorded and "{" not in recorded
    assert shown["verification"][0]["text"].splitlines()[0] == "identical"
    (video,) = (tmp_path / "outputs").glob("*/*.mp4")
    assert video.stat().st_size > 1000


def png_size(text: str, folder: Path) -> tuple[int, int]:
    """(width, height) of a base64-encoded image in a notebook's output."""
    path = folder / "figure.png"
    path.write_bytes(base64.b64decode(text))
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.slow
def test_setup_lists_the_machine_and_the_weights(tmp_path):
    done, executed = papermill("00_setup", tmp_path, {})
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    assert "PyTorch" in data(shown["machine-table"], "text/html")
    assert "—" not in data(shown["machine-table"], "text/html")
    assert "Disk free (GiB)" in data(shown["room-table"], "text/html")
    assert "transformer" in data(shown["weights-table"], "text/html")


@pytest.mark.slow
def test_an_unknown_parameter_stops_the_run_and_suggests_the_nearest_name(tmp_path):
    done, executed = papermill("01_generate", tmp_path, TINY | {"audio_guide_scal": 3})
    assert done.returncode != 0
    assert "Did you mean `audio_guide_scale`?" in done.stderr
    assert executed.exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"seed": 7}, {"cfg": 3}])
def test_only_parameters_are_checked_in_a_kernel(tmp_path, given):
    cells = [
        new_code_cell("mine = 1"),
        new_code_cell('image_path = "i"\naudio_path = "a"', metadata={"tags": ["parameters"]}),
        new_code_cell("speed = 3"),
        new_code_cell(
            "from talkinghead_lab import GenerationParams\n"
            "print(GenerationParams.from_notebook(globals()).seed)",
        ),
    ]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "mine.ipynb")
    notebook = parameterize_notebook(load_notebook_node(str(tmp_path / "mine.ipynb")), given)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}, allow_errors=True)
    (output,) = client.execute().cells[-1].outputs
    assert output.get("text") == "7\n" if "seed" in given else "unknown parameter" in output["evalue"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["02_cfg_sweep", "03_step_sweep"])
def test_a_sweep_shows_its_figures_and_writes_its_table(notebook, request_for, tmp_path):
    base = request_for(diffusion_steps=2).model_dump(mode="json", exclude_defaults=True)
    base |= {"audio_path": "sample:recording-2"}
    parameters = {
        "sweep_file": str(ROOT / "params" / f"sweep-{notebook[3:].split('_')[0]}.yaml"),
        "base": base, "small": True, "measure": "sharpness", "folder": str(tmp_path / "sweep"),
    }  # fmt: skip
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(parameters))
    done, executed = papermill(notebook, tmp_path, {}, tmp_path / "given.yaml")
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    for figure in ("heat-map", "curves", "differences"):
        assert png_size(data(shown[figure], "image/png"), tmp_path)[0] > 500
        assert (tmp_path / "sweep" / f"{figure}.svg").stat().st_size > 1000
    assert '<video controls src="data:video/mp4' in data(shown["videos"], "text/html"), "also untrusted"
    assert "Cohen" in data(shown["differences"], "text/html")
    assert "No run failed" in data(shown["record"], "text/html")
    published = json.dumps([shown, (tmp_path / "sweep" / "results.csv").read_text()])
    assert str(ROOT) not in published
    assert "cells/" in published, "paths are relative to the sweep's folder"
    table = (tmp_path / "sweep" / "results.csv").read_text().splitlines()
    assert len(table) == 1 + (16 if notebook == "02_cfg_sweep" else 32)


@pytest.mark.slow
def test_a_profile_shows_its_timeline_and_predicts_the_peak_of_its_runs(request_for, tmp_path):
    (tmp_path / "request.yaml").write_text(request_for(device="cpu").to_yaml())
    parameters = {
        "params_file": str(tmp_path / "request.yaml"), "folder": str(tmp_path / "profile"), "small": True,
        "frame_sizes": ["32x32", "64x64", "96x96"], "chunk_frames": [9, 13], "base": {"diffusion_steps": 1},
    }  # fmt: skip
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(parameters))
    done, executed = papermill("04_vram_profile", tmp_path, {}, tmp_path / "given.yaml")
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    assert "host memory: no GPU found" in data(shown["build"], "text/html")
    for figure in ("timeline", "foreseen"):
        assert png_size(data(shown[figure], "image/png"), tmp_path)[0] > 500
        assert (tmp_path / "profile" / f"{figure}.svg").stat().st_size > 1000
    assert "vae_encode" in data(shown["profile"], "text/html")
    model = json.loads((tmp_path / "profile" / "memory_coefficients.json").read_text())
    assert 0.2 < model["outside_gib"] < 2
    assert shown["record"][0]["text"].startswith("failed: none")


@pytest.mark.slow
def test_a_benchmark_generates_scores_and_reports(tmp_path):
    one_step = {"diffusion_steps": 1, "text_guide_scale": 1, "audio_guide_scale": 1, "frame_size": "96x96"}
    parameters = {
        "manifest_file": str(ROOT / "params" / "benchmarks" / "drawn.yaml"), "small": True,
        "clips_folder": str(tmp_path / "clips"), "folder": str(tmp_path / "out"), "methods": ["embedded"],
        "base": one_step, "videos": {"theirs": str(tmp_path / "clips")}, "workers": 1,
    }  # fmt: skip
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(parameters))
    done, executed = papermill("06_benchmark", tmp_path, {}, tmp_path / "given.yaml")
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    assert "drawn-small: 4 clips of 4 people" in shown["build"][-1]["text"]
    table = data(shown["table"], "text/markdown")
    lines = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines[2:]] == ["real", "real-wrong-recordings", "embedded", "theirs"]
    of_clips = slice(3, next(place for place, name in enumerate(lines[0]) if "drawn_" in name))
    assert lines[2][of_clips] == lines[5][of_clips], "copies of the real videos are as good as they are"
    assert lines[4][of_clips] != lines[5][of_clips]
    for figure in ("strips", "scatter", "clips"):
        assert png_size(data(shown[figure], "image/png"), tmp_path)[0] > 400
    assert "<video" in data(shown["report"], "text/html")
    assert "failed: none" in shown["report"][0]["text"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000


def test_a_notebook_that_jupyter_saved_shows_no_difference_to_git(tmp_path):
    """With the filter that `make lab` sets: only edited cells differ."""
    (tmp_path / "notebooks").mkdir()
    for file in (*NOTEBOOKS, ROOT / ".gitattributes", ROOT / ".gitconfig"):
        (tmp_path / file.relative_to(ROOT)).write_bytes(file.read_bytes())
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    git("config", "--add", "include.path", "../.gitconfig")
    git("add", ".")
    git("commit", "--quiet", "-m", "stored")
    for file in NOTEBOOKS:
        saved = tmp_path / "notebooks" / file.name
        notebook = json.loads(saved.read_text())
        notebook["metadata"]["language_info"] |= {
            "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
            "mimetype": "text/x-python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3",
            "version": "3.13.1",
        }  # fmt: skip
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                shown = [{"output_type": "stream", "name": "stdout", "text": ["shown\n"]}]
                cell |= {"execution_count": number, "outputs": shown}
                cell["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
        saved.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    assert git("diff") == ""
    saved.write_text(saved.read_text().replace("import", "import  ", 1))
    assert git("diff", "--stat").startswith(f" notebooks/{saved.name} | 2 ")
