"""The bundled model in every 8-bit form of other programs: it loads through a request, and generates."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from talkinghead_lab.bench.forwards import relative_error, velocity
from talkinghead_lab.bench.sizes import random_conditions
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.media import video
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.offload.requirements import NetworkSize
from talkinghead_lab.offload.streamed_blocks import StreamedBlocks
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.plan import networks_without_weights
from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.quantization import check_stored, multiply_fp8
from talkinghead_lab.weights.reading import replace_module
from talkinghead_lab.weights.transformer import load_transformer
from tests.weights.quantized_files import E5M2, FORMS, FP8, matrices, write

FOLDERS = tuple(locating.RELEASED_REPOSITORIES)
TRANSFORMER = f"ckpt_dir/{locating.TRANSFORMER}.safetensors"
ADAPTER = "infinitetalk_dir/infinitetalk.safetensors"
GRID = LatentGrid(9, 32, 32)


@pytest.fixture(scope="module")
def stored_as(tmp_path_factory, recording):
    """Make a request for the bundled model, stored in a form."""

    def make(form: str | None, **changes) -> GenerationParams:
        fields = {name: str(locating.EMBEDDED_WEIGHTS / name) for name in FOLDERS}
        if form is not None:
            folder = tmp_path_factory.mktemp("stored")
            for name in ("ckpt_dir", "infinitetalk_dir"):
                shutil.copytree(fields[name], folder / name)
                fields[name] = str(folder / name)
            for file in (TRANSFORMER, ADAPTER):
                write(folder / file, load_file(locating.EMBEDDED_WEIGHTS / file), form)
        media = {"audio_path": recording(0.4), "image_path": "sample:portrait", "prompt": "a calm presenter"}
        small = {"frame_size": "32x32", "chunk_frames": 9, "motion_frame": 5, "diffusion_steps": 1}
        chosen = {"checkpoint": "released", "device": "cpu"} | media | small | fields | changes
        return GenerationParams(**chosen)

    return make


@torch.inference_mode()
def velocity_of(dit: DiT) -> Tensor:
    latent = torch.randn(
        1, *GRID.latent_shape(dit.config.out_dim), generator=torch.Generator().manual_seed(0)
    )
    return velocity(dit, latent, random_conditions(dit, GRID, torch.device("cpu")))


@pytest.fixture(scope="module")
def plain(stored_as) -> Tensor:
    """The velocity of the weights as they ship."""
    return velocity_of(load_transformer(load_settings(stored_as(None))))


def quantised(dit: DiT) -> dict[str, RowQuantizedLinear]:
    return {name: layer for name, layer in dit.named_modules() if isinstance(layer, RowQuantizedLinear)}


@pytest.mark.parametrize("form", FORMS)
def test_a_forward_pass(stored_as, plain, form):
    dit = load_transformer(load_settings(stored_as(form)))
    weights = load_file(locating.EMBEDDED_WEIGHTS / TRANSFORMER)
    weights |= load_file(locating.EMBEDDED_WEIGHTS / ADAPTER)
    assert 1e-5 < relative_error(velocity_of(dit), plain) < FORMS[form][1]
    layers = quantised(dit)
    assert layers.keys() >= set(matrices(weights))
    assert layers.keys() == set(matrices(weights)) or "every tensor" in form
    assert {layer.full_precision for layer in layers.values()} == {"full precision" in form}


@pytest.mark.parametrize("form", ["raw e4m3", "raw e5m2"])
def test_raw_fp8_computes_with_exactly_the_stored_values(stored_as, form):
    dit = load_transformer(load_settings(stored_as(form)))
    out = velocity_of(dit)
    for name, layer in quantised(dit).items():
        linear = nn.Linear(*reversed(layer.shape)).requires_grad_(False)
        linear.weight.data, linear.bias = layer.weight.float(), layer.bias
        replace_module(dit, name, linear)
    assert torch.equal(velocity_of(dit), out)


@pytest.mark.parametrize("form", ["raw e4m3", "quanto int8"])
def test_offloaded_weights_stay_as_stored_and_give_the_same_bits(stored_as, form):
    settings = load_settings(stored_as(form))
    resident, offloaded = load_transformer(settings), load_transformer(replace(settings, offloaded=True))
    assert all(layer.weight.element_size() == 1 for layer in quantised(offloaded).values())
    blocks = cast(StreamedBlocks, offloaded.get_submodule("blocks"))
    blocks.open(0)
    assert torch.equal(velocity_of(offloaded), velocity_of(resident))


@pytest.mark.parametrize("form", ["raw e4m3, every tensor", "scaled e4m3", "quanto int8"])
def test_the_planned_size_is_that_of_the_loaded_network(stored_as, form):
    settings = load_settings(stored_as(form))
    planned = NetworkSize.of(networks_without_weights(settings)["transformer"], "blocks")
    assert planned == NetworkSize.of(load_transformer(settings), "blocks")


def test_raw_fp8_generates_frames_and_the_record_names_the_stored_types(stored_as, tmp_path):
    plain, raw = (
        generate(stored_as(form, max_frames=9), tmp_path / str(form), show_progress=False)
        for form in (None, "raw e4m3")
    )
    pairs = zip(video.read_frames(plain.video_path), video.read_frames(raw.video_path), strict=True)
    errors = [np.abs(before.astype(float) - after).mean() for before, after in pairs]
    assert len(errors) == raw.frame_count == 9
    assert 0 < max(errors) < 8, "of 255 levels"
    resolved = json.loads((raw.run_dir / "run.json").read_text())["resolved"]
    assert (resolved["stored"], resolved["storage_type"]) == ({"float16": 231, "fp8": 122}, None)


@pytest.mark.parametrize(
    ("form", "precision", "compute"),
    [
        ("raw e4m3", "auto", torch.float32),
        ("raw e4m3", "bf16", torch.bfloat16),
        ("raw e4m3", "fp8", torch.float32),
        ("rows int8", "int8", torch.float32),
    ],
)
def test_precision_of_stored_types(stored_as, form, precision, compute):
    """What is stored stays; what is plain becomes fp8 or int8 only if that is asked for."""
    settings = load_settings(stored_as(form, precision=precision))
    assert settings.compute is compute
    dit = load_transformer(settings)
    kinds = {layer.stored_as for name, layer in quantised(dit).items() if name.startswith("blocks.")}
    assert kinds == ({"int8"} if form == "rows int8" else {"fp8"})
    assert dit.dtype is compute


@pytest.mark.parametrize(
    ("form", "precision", "named"),
    [("raw e4m3", "int8", "int8 for weights in fp8"), ("rows int8", "fp8", "fp8 for weights in int8")],
)
def test_a_precision_that_contradicts_the_stored_type_is_refused(stored_as, form, precision, named):
    with pytest.raises(InvalidRequest, match=named):
        load_settings(stored_as(form, precision=precision))


@pytest.mark.parametrize(
    ("precision", "stored", "refused"),
    [
        ("fp8", ["bfloat16", "fp8", "int8"], None),
        ("fp8", ["fp8 (e5m2)"], None),
        ("int8", ["fp8", "int8"], "int8 for weights in fp8"),
        ("fp8", ["Q8_0", "float32"], "fp8 for weights in Q8_0"),
        ("auto", ["Q8_0", "fp8", "int8"], None),
        ("bf16", ["int8"], None),
    ],
)
def test_precision_and_several_stored_types(precision, stored, refused):
    if refused is None:
        check_stored(precision, stored)
        return
    with pytest.raises(InvalidRequest, match=refused):
        check_stored(precision, stored)


def test_scales_may_lie_in_another_shard_than_their_weights(stored_as, plain):
    params = stored_as("scaled e4m3")
    folder = Path(params.ckpt_dir)
    whole = folder / f"{locating.TRANSFORMER}.safetensors"
    tensors = load_file(whole)
    scales = {name for name in tensors if "scale" in name}
    for number, names in ((1, tensors.keys() - scales), (2, scales)):
        shard = folder / f"{locating.TRANSFORMER}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name].clone() for name in names}, shard)
    whole.unlink()
    error = relative_error(velocity_of(load_transformer(load_settings(params))), plain)
    assert 1e-5 < error < FORMS["scaled e4m3"][1]


def test_e5m2_multiplies_in_fp8_only_where_it_can(stored_as, plain):
    dit = load_transformer(load_settings(stored_as("raw e5m2", precision="fp8")))
    dequantised, blocks = velocity_of(dit), dit.get_submodule("blocks")
    assert multiply_fp8(blocks) == 0
    assert multiply_fp8(blocks, (FP8, E5M2)) == (4 + 1 + 2) * len(dit.blocks)
    assert 1e-5 < relative_error(velocity_of(dit), dequantised) < 0.12


@pytest.mark.parametrize(("form", "share"), [("scaled e4m3", 1), ("scaled e4m3, full precision", 0)])
def test_a_file_may_forbid_fp8_matmuls(stored_as, form, share):
    dit = load_transformer(load_settings(stored_as(form)))
    blocks = dit.get_submodule("blocks")
    count = share * (4 + 1 + 2) * len(dit.blocks)  # of self-attention, cross-attention and feed-forward
    assert multiply_fp8(blocks) == dit.kernels()["fp8_matmuls"] == count
