"""Peers: checkouts are imported without what they lack, and get the same weights and inputs as ours."""

import importlib
import sys

import pytest
import torch

from talkinghead_lab.bench.peers import measure
from talkinghead_lab.bench.peers.checkout import checkout_folder, commit_of, modules_of
from talkinghead_lab.bench.peers.reference import VARIABLE
from talkinghead_lab.bench.rows import Results
from talkinghead_lab.bench.sizes import SIZES
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.models.dit.conditions import speaker_regions
from talkinghead_lab.models.dit.model import DiT

CPU, TINY = torch.device("cpu"), SIZES["tiny"]


class RawInputs:
    """Our network as a peer would run it: from raw inputs, nothing precomputed, with weights by name."""

    def __init__(self, weights, size, device, timestep):
        self.name, self.stated, self.time = "raw", {"commit": "abc"}, torch.full((1,), timestep)
        self.model = DiT(size.dit)
        self.model.load_state_dict(weights)

    def velocity(self, inputs):
        regions = speaker_regions(inputs.masks, (1, 2, 2))
        return self.model(
            *(inputs.latent, inputs.picture, self.time, [inputs.text], inputs.image, inputs.audio, regions)
        )


def broken(weights, size, device, timestep):
    raise ImportError("a package that it needs")


def test_ours_is_measured_beside_every_peer_that_runs(monkeypatch, capsys):
    monkeypatch.setattr(DiT, "compile_blocks", lambda dit: None)
    monkeypatch.setattr(measure, "WITH_AUDIO", (broken, RawInputs))
    measure.measure_peers(TINY, CPU, results := Results(None, {}))
    errors = {name: row.conditions.get("relative_error") for name, row in results.rows.items()}
    assert errors["peer: raw, one speaker"] < 1e-5
    assert errors["peer: raw, two speakers"] < 1e-5
    assert results.rows["peer: raw, two speakers"].conditions["commit"] == "abc"
    assert {"peer: ours, eager, no audio layers", "peer: ours, compiled, two speakers"} < errors.keys()
    assert "ImportError: a package that it needs" in capsys.readouterr().err


def test_speakers_and_audio_layers_change_the_outputs_that_peers_are_compared_with(monkeypatch):
    monkeypatch.setattr(DiT, "compile_blocks", lambda dit: None)
    outputs, add = {}, measure._add
    monkeypatch.setattr(measure, "WITH_AUDIO", ())
    monkeypatch.setattr(
        measure, "_add", lambda name, *rest, **more: outputs.setdefault(name, add(name, *rest, **more))
    )
    measure.measure_peers(TINY, CPU, Results(None, {}))
    one, two, none = (
        outputs[f"peer: ours, eager, {what}"] for what in ("one speaker", "two speakers", "no audio layers")
    )
    assert (one - two).norm() > 1e-3 * one.norm()
    assert (one - none).norm() > 1e-3 * one.norm()


def test_a_module_of_a_checkout_is_imported_without_its_package_and_what_is_absent(tmp_path):
    package = tmp_path / "demopeer" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise RuntimeError('imports everything')")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(
        "import absentpeer.run as run\nfrom absentpeer import jit\nfrom given_attention import attend as a\n"
        "@jit(option=1)\ndef unused(): pass\nvalue = a(3)\n"
    )
    given = type(sys)("given_attention")
    given.attend = lambda x: x + 1
    with modules_of(tmp_path, ("demopeer",), ("absentpeer", "json"), {"given_attention": given}) as absent:
        model = importlib.import_module("demopeer.models.model")
    assert absent == ["absentpeer"]
    assert model.value == 4
    assert not {name for name in sys.modules if name.startswith(("demopeer", "absentpeer", "given_"))}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absentpeer")
    assert commit_of(tmp_path) == "unknown"


def test_a_missing_checkout_is_named_with_the_variable_that_sets_it(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InvalidRequest, match=f"{VARIABLE}=FOLDER.*wan/model.py") as error:
        checkout_folder(VARIABLE, "wan/model.py")
    assert str(tmp_path) in str(error.value)
