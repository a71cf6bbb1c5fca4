"""Where fp16 overflows while decoding, the rest of the run is decoded in fp32, also after a resume."""

import json

import pytest
import torch

from talkinghead_lab.errors import Stopped
from talkinghead_lab.pipeline import request as request_module
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.sampling import decoding

F16, F32 = torch.float16, torch.float32


@pytest.fixture
def decoded(monkeypatch):
    """Decode in fp16 on a CPU, where the second chunk overflows; lists the types of all decodes."""
    types, latents = [], []
    plain = decoding._finished

    def pieces(vae, latent, finish):
        types.append(vae.decode_type)
        latents.append(latent.clone())
        overflows = len(latents) > 1 and torch.equal(latent, latents[1]) and vae.decode_type == F16
        for number, piece in enumerate(plain(vae, latent, finish)):
            yield piece * torch.inf if overflows and number else piece

    monkeypatch.setattr(decoding, "_finished", pieces)
    monkeypatch.setattr(request_module, "decode_type", lambda compute, device: F16)
    return types


def chunks_of(folder) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["chunks"]


@pytest.mark.parametrize("budget", [None, 64])
def test_an_overflow_is_found_once(request_for, decoded, tmp_path, budget):
    params = request_for(vram_budget_gib=budget)
    pipeline = Pipeline.load(params)
    generate(params, tmp_path / "plain", pipeline=pipeline, show_progress=False)
    assert len(chunks_of(tmp_path / "plain")) == 5
    assert decoded == [F16, F16, F32, F32, F32, F32]
    found = [chunk["decode_type"] for chunk in chunks_of(tmp_path / "plain")]
    assert found == ["float16"] + ["float32"] * 4
    # Another run with the same networks starts as a new process would, and so does one that is resumed.
    for chunk, expected in ((2, [F16] + [F32] * 4), (3, [F32] * 3)):
        folder = tmp_path / str(chunk)
        with pytest.raises(Stopped):
            generate(
                params,
                folder,
                pipeline=pipeline,
                on_progress=lambda progress, last=chunk: progress.chunk < last,
                show_progress=False,
            )
        del decoded[:]
        generate(params, folder, pipeline=pipeline, show_progress=False)
        assert decoded == expected
        same = [(c["frames_sha256"], c["decode_type"]) for c in chunks_of(folder)]
        assert same == [(c["frames_sha256"], c["decode_type"]) for c in chunks_of(tmp_path / "plain")]
