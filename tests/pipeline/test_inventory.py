"""The inventory says whether a generation can run with the files of a folder, and with how much memory."""

import json

import pytest

from talkinghead_lab.__main__ import main
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.inventory import Inventory, inventory
from talkinghead_lab.pipeline.plan import Plan, plan
from tests.weights.models_tree import PLACES, write_models

SAMPLES = {"image_path": "sample:portrait", "audio_path": "sample:recording", "device": "cpu"}


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path)


def test_a_complete_folder_states_the_memory_of_its_plan(models):
    request = GenerationParams(**SAMPLES, weights=str(models), frame_size="160x160")
    found = inventory(request)
    assert found.is_complete
    assert found.plan.needed_gib == plan(request).needed_gib
    assert f"160x160 needs {found.plan.needed_gib:.2f} GiB of memory on cpu" in found.verdict
    assert [row["state"] for row in found.rows()] == ["used"] * 6


def test_the_table_fits_its_width_and_names_everything(models):
    (models / PLACES["speech_encoder"]).unlink()
    long = models / "vae" / f"{'long-' * 40}.safetensors"
    (models / PLACES["vae"]).rename(long)
    (models / PLACES["vae"]).with_suffix(".json").rename(long.with_suffix(".json"))
    (models / "\x1b[2Jdamaged.pth").write_bytes(b"damaged")
    found = inventory(GenerationParams(**SAMPLES, weights=str(models)))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(lines[: lines.index("")]) == f"6 weight files in {models}, checked on cpu in fp32"
    assert "state           GiB  file" in lines
    assert sum(line.startswith("used          0.0") for line in lines) == 5
    assert "\x1b" not in str(found)
    assert "speech_encoder  missing    no weight file for the speech encoder" in str(found)
    assert lines[-1] == "A generation cannot run with these files: speech_encoder is missing."


@pytest.mark.parametrize("fits", [True, False, None])
def test_on_a_gpu_the_verdict_names_device_and_host_memory(fits):
    gib = {"transformer": 15.0, "text encoder": 10.5}
    planned = Plan("cuda:0", gib, 6.0, 31.5, 7.25, {}, 40.0, None, fits, {"frame_size": "640x640"})
    found = Inventory({}, "cuda:0", "bf16", (), (), planned)
    assert found.is_complete
    assert found.verdict.startswith(f"A generation {'does not fit' if fits is False else 'can run'} with")
    assert "640x640 needs 31.50 GiB of memory on cuda:0, where 40.00 are free." in found.verdict
    assert "With a `vram_budget_gib` it needs 7.25 GiB there, and 25.50 GiB of host memory" in found.verdict


def test_a_request_that_cannot_run_is_not_called_complete(models):
    request = GenerationParams(**SAMPLES | {"image_path": "nowhere.png"}, weights=str(models))
    found = inventory(request)
    assert not found.is_complete
    assert "nowhere.png" in found.verdict


@pytest.mark.parametrize("speakers", [1, 2])
def test_the_command_prints_json(models, speakers, capsys):
    (models / PLACES["adapter"]).rename(models / "diffusion_models" / "single.safetensors")
    given = ["-p", "device", "cpu", "-p", "frame_size", "160x160", "--speakers", str(speakers)]
    assert main(["inventory", str(models), "--json", *given]) == speakers - 1
    found = json.loads(capsys.readouterr().out)
    states = {row["role"]: row["state"] for row in found["roles"]}
    assert found["complete"] is (speakers == 1)
    assert states["adapter"] == ("complete" if speakers == 1 else "missing")
    stored = {row["path"]: row["stored"] for row in found["files"]}
    assert stored[PLACES["transformer"]] == {"fp16 tensor": 279}
    assert (found["plan"] is None) is (speakers == 2)


def test_without_a_folder_the_variables_count_and_then_the_bundled_model(models, monkeypatch, capsys):
    for variable in ("WEIGHTS_DIR", "CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert main(["inventory", "-p", "device", "cpu"]) == 0
    assert "A generation can run with these files: 160x160" in capsys.readouterr().out
    monkeypatch.setenv("WEIGHTS_DIR", str(models))
    (models / PLACES["vae"]).unlink()
    assert main(["inventory", "-p", "device", "cpu"]) == 1
    assert "vae             missing" in capsys.readouterr().out
    monkeypatch.delenv("WEIGHTS_DIR")
    monkeypatch.setenv("CKPT_DIR", str(models / "nowhere"))
    assert main(["inventory"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("transformer     missing    ckpt_dir does not exist") for line in lines)
    assert "vae             missing    as for transformer" in lines
    monkeypatch.setenv("WEIGHTS_DIR", str(models / "nowhere"))
    assert main(["inventory"]) == 2
    assert "no folder" in capsys.readouterr().err
