"""A plan before the weights are there: the released sizes answer, and equal those of released files."""

import json
import struct
from pathlib import Path

import pytest
import torch

from talkinghead_lab.__main__ import main
from talkinghead_lab.bench import checkpoint as bench_checkpoint
from talkinghead_lab.bench.sizes import SIZES
from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.presets import preset_names
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import plan
from talkinghead_lab.weights.locating import RELEASED_REPOSITORIES, WEIGHTS_VARIABLE

RELEASED = [
    name for name in preset_names(sweeps=False) if GenerationParams.from_yaml(name).checkpoint == "released"
]


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path) -> None:
    """No variable names weights, and the working directory is empty."""
    for name in (WEIGHTS_VARIABLE, *map(str.upper, RELEASED_REPOSITORIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def released_files(tmp_path_factory) -> dict[str, str]:
    """The fields that name files with the headers of the released ones and holes in place of values."""

    def write_headers(path: Path, tensors, dtype: torch.dtype) -> None:
        header, end = {}, 0
        for name, tensor in tensors.items():
            start, end = end, end + tensor.numel() * dtype.itemsize
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with path.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_checkpoint, "_write_file", write_headers)
        folder = tmp_path_factory.mktemp("released") / "weights"
        return bench_checkpoint.random_checkpoint(folder, SIZES["released"])


@pytest.mark.parametrize("name", RELEASED)
def test_released_presets_are_planned_without_weights(name, capsys):
    assert main(["plan", name, "-p", "device", "cpu", "--json"]) == 1, "80 GB do not fit"
    planned = json.loads(capsys.readouterr().out)
    assert planned["weights_gib"]["transformer"] == pytest.approx(70.34, abs=0.01)
    assert planned["settings"]["diffusion_steps"] == GenerationParams.from_yaml(name).diffusion_steps
    assert "no weights yet" in planned["warnings"][-1]


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"precision": "int8"}])
def test_the_plan_is_that_of_released_files(changes, released_files):
    request = GenerationParams.from_yaml("infinitetalk-480", device="cpu", **changes)
    before, after = plan(request), plan(request.replace(**released_files))
    assert after.warnings == ()
    sizes = ("weights_gib", "work_gib", "needed_gib", "smallest_budget_gib", "stages_gib", "settings")
    assert {name: getattr(before, name) for name in sizes} == {name: getattr(after, name) for name in sizes}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the plan is for the GPU that is there")
def test_without_a_gpu_the_plan_says_what_one_would_need():
    """The smallest budgets are those that docs/small-gpus.md states, within what is rounded there."""
    planned = plan(GenerationParams.from_yaml("infinitetalk-480"))
    assert planned.on_gpu == pytest.approx({"needed_gib": 57.7, "smallest_budget_gib": 9.0}, abs=0.06)
    assert "on a GPU, where there is none here: 57.6" in str(planned)
    assert plan(GenerationParams.from_yaml("embedded")).on_gpu is None
    fp8 = plan(GenerationParams.from_yaml("infinitetalk-480", precision="fp8")).on_gpu
    assert fp8 is not None
    assert fp8["needed_gib"] < 45


def test_a_folder_without_weights_is_planned_and_a_damaged_file_is_not(tmp_path, monkeypatch):
    request = GenerationParams.from_yaml("infinitetalk-480", device="cpu")
    (tmp_path / "weights" / "vae").mkdir(parents=True)
    for folder in (tmp_path / "weights", tmp_path / "none"):
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(folder))
        assert "no weights yet" in plan(request).warnings[-1]
    (tmp_path / "weights" / "vae" / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    with pytest.raises(CheckpointError):
        plan(request)


def test_a_generation_without_weights_is_still_refused(tmp_path, capsys):
    assert main(["generate", "infinitetalk-480", "-p", "device", "cpu", "--run", "run"]) == 2
    assert "python -m talkinghead_lab fetch" in capsys.readouterr().err
