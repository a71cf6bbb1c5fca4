"""Parameter files are found by path or by a preset's name, and files of another kind are named as such."""

import os
import threading

import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation import presets
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.folder import RECORD
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.sweeps.definition import Sweep

SHIPPED = presets.presets()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_preset_is_read_by_its_name_anywhere(name, folder):
    read = Sweep.from_yaml if name in presets.preset_names(sweeps=True) else GenerationParams.from_yaml
    assert read(name) == read(SHIPPED[name])
    assert not list(folder.iterdir())


def test_a_file_wins_over_a_preset_and_a_folder_does_not(folder):
    (folder / "embedded").write_text("{image_path: a.png, audio_path: a.wav, seed: 5}")
    assert GenerationParams.from_yaml("embedded").seed == 5
    (folder / "embedded-fast").mkdir()
    assert GenerationParams.from_yaml("embedded-fast").loras


def test_the_projects_own_parameter_files_are_presets_and_win(folder):
    (folder / "params").mkdir()
    for name in ("mine", "embedded"):
        (folder / "params" / f"{name}.yaml").write_text("{image_path: a.png, audio_path: a.wav, seed: 6}")
    assert {GenerationParams.from_yaml(name).seed for name in ("mine", "embedded")} == {6}
    assert "mine" in presets.preset_names(sweeps=False)
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    (notebooks / "01_generate.ipynb").touch()
    os.chdir(notebooks)
    assert GenerationParams.from_yaml("mine").seed == GenerationParams.from_yaml("params/mine.yaml").seed == 6


def test_a_pipe_is_read(folder):
    os.mkfifo(folder / "pipe")
    text = "{image_path: a.png, audio_path: a.wav, seed: 7}"
    writer = threading.Thread(target=(folder / "pipe").write_text, args=[text])
    writer.start()
    assert GenerationParams.from_yaml(folder / "pipe").seed == 7
    writer.join()


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("embeded", "embedded"),
        ("params/embedded.yaml", "embedded"),
        ("Infinitetalk_480.yml", "infinitetalk-480"),
        ("two-speaker", "two-speakers"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_names(given, nearest, folder):
    with pytest.raises(InvalidRequest, match=f"Did you mean `{nearest}`") as caught:
        GenerationParams.from_yaml(given)
    listed = str(caught.value)
    assert all(name in listed for name in presets.preset_names(sweeps=False))
    assert "sweep-cfg" not in listed


@pytest.mark.parametrize("given", ["", "x" * 5000, "x\0y", "qqqq"])
def test_what_is_near_no_name_is_refused(given, folder):
    with pytest.raises(InvalidRequest):
        GenerationParams.from_yaml(given)
    with pytest.raises(InvalidRequest, match="sweep-cfg, sweep-step"):
        Sweep.from_yaml("qqqq")


def test_a_folder_is_called_a_folder(folder):
    (folder / "run").mkdir()
    for read in (GenerationParams.from_yaml, Sweep.from_yaml):
        with pytest.raises(
            InvalidRequest, match=r"a folder, not a parameter file: received run. .*request\.yaml"
        ):
            read("run")


REQUEST = "image_path: a.png\naudio_path: a.wav\n"


@pytest.mark.parametrize(
    ("text", "as_request", "as_sweep"),
    [
        (
            "seeds: [1, 2]\naxes: {seed: [1]}\n" + REQUEST,
            "this is a sweep, not a request",
            "field of a request",
        ),
        ("seeds: [1]\nportraits: []\nbase: {}", "this is a sweep, not a request", ""),
        ("axes: {diffusion_steps: [4, 8]}", "this is a sweep, not a request", ""),
        (REQUEST, "", "this is a request, not a sweep"),
        ("prompt: a person", "", "this is a request, not a sweep"),
        ("{cells: [], metadata: {}, nbformat: 4}", "this is a notebook", "this is a notebook"),
    ],
)
def test_files_of_another_kind_are_called_what_they_are(text, as_request, as_sweep, folder):
    (folder / "file.yaml").write_text(text)
    for read, problem in ((GenerationParams.from_yaml, as_request), (Sweep.from_yaml, as_sweep)):
        if problem:
            with pytest.raises(InvalidRequest, match=problem):
                read("file.yaml")


def test_a_record_and_a_video_are_called_what_they_are(request_for, folder):
    made = generate(request_for(max_frames=5), folder / "run", show_progress=False)
    for read in (GenerationParams.from_yaml, Sweep.from_yaml):
        with pytest.raises(InvalidRequest, match="the record of a run"):
            read(made.run_dir / RECORD)
        with pytest.raises(InvalidRequest, match=r"not text.*from_video"):
            read(made.video_path)
