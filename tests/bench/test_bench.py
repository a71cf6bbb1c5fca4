"""The benchmark at its tiny size: rows, rooflines, jobs, and result files."""

import json
import re
from pathlib import Path

import pytest
import torch

from talkinghead_lab.bench import checkpoint, gguf
from talkinghead_lab.bench.command import main
from talkinghead_lab.bench.decode import DECODE
from talkinghead_lab.bench.forwards import COMPILED, OUTSIDE, SKIPPED
from talkinghead_lab.bench.jobs import FAST, FOUR_STEPS, JOBS, add_jobs, total
from talkinghead_lab.bench.load import PARTS
from talkinghead_lab.bench.roofline import (
    attention_name,
    frame_matmul_name,
    frame_shapes,
    linear_shapes,
    matmul_name,
    roofline_seconds,
)
from talkinghead_lab.bench.rows import Results, Row
from talkinghead_lab.bench.sizes import SIZES
from talkinghead_lab.bench.table import markdown, read_rows
from talkinghead_lab.bench.two_speakers import measure_two_speakers
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.profiling import profile
from talkinghead_lab.sampling.chunks import plan_chunks
from talkinghead_lab.weights import checkpoints

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "outputs" / "published").glob("*/bench*.json"))
MACHINE = {"device": "a machine"}
TINY, RELEASED = SIZES["tiny"], SIZES["released"]


def test_separate_runs_add_their_rows_to_one_file(tmp_path):
    out = tmp_path / "figures.json"
    assert main(["--size", "tiny", "--device", "cpu", "--out", str(out), "--only", "products"]) == 0
    assert main(["--size", "tiny", "--device", "cpu", "--out", str(out), "--only", "attention", "step"]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert {matmul_name("bf16", shape) for shape in linear_shapes(TINY.dit)} <= rows.keys()
    assert {attention_name("sdpa"), attention_name("triton"), OUTSIDE, SKIPPED} <= rows.keys()
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows[attention_name("triton")]["conditions"]["relative_error"] < 0.05


@pytest.mark.slow
def test_every_speed_up_of_a_forward_pass_is_measured(tmp_path):
    out = tmp_path / "figures.json"
    parts = ["forward", "several-gpus"]
    assert main(["--size", "tiny", "--device", "cpu", "--out", str(out), "--only", *parts]) == 0
    rows = {row["name"]: row["conditions"] for row in json.loads(out.read_text())["rows"]}
    several = {name: rows.pop(name) for name in list(rows) if name.startswith("several GPUs")}
    errors = [conditions["relative_error"] for conditions in rows.values()]
    assert len(errors) == 4
    assert errors[0] == 0
    assert errors[1] < 1e-4 < errors[2] < 0.1
    shared = {name: row for name, row in several.items() if name.endswith("shared by 2")}
    assert len(shared) == 6
    assert all(row["relative_error"] < 1e-4 for row in shared.values())
    assert {row["exchange"] for row in shared.values()} == {"gloo"}
    for name in ("a step of two forwards", "decoding"):
        assert shared[f"several GPUs: {name} shared by 2"]["relative_error"] == 0


@pytest.mark.slow
def test_two_speakers_are_measured_beside_one():
    measure_two_speakers(TINY, CPU, results := Results(None, MACHINE))
    rows = {name: row.conditions for name, row in results.rows.items()}
    assert len(rows) == 4
    assert rows["speakers: 1, bf16, compiled"]["of_one_speaker"] == 1
    assert rows["speakers: 2, bf16, compiled"]["of_one_speaker"] > 0
    assert rows["speakers: 2, bf16, eager"]["error_to_float32"] == 0
    assert 0 < rows["speakers: 2, bf16, compiled"]["error_to_float32"] < 1e-5


def test_block_types_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(DiT, "compile_blocks", lambda dit: None)
    monkeypatch.setattr(gguf, "BLOCK_TYPES", {kind: gguf.BLOCK_TYPES[kind] for kind in gguf.WRITERS})
    gguf.measure_gguf(TINY, CPU, results := Results(tmp_path / "figures.json", MACHINE))
    names = {name.removeprefix("gguf: forward, "): row.conditions for name, row in results.rows.items()}
    q8_0, q4_k = names["Q8_0, compiled"], names["Q4_K, compiled"]
    for error in ("relative_error", "float32_error"):
        assert names["bf16, compiled"][error] == 0
        assert 0.003 < q8_0[error] < 0.01 < 0.05 < q4_k[error] < 0.15
    assert names["Q4_K, compiled, within 8 GiB"]["slow_down"] > 0
    assert {"gguf: dequantise Q8_0, 512x256", "gguf: dequantise Q4_K, 512x256"} < results.rows.keys()


def test_result_files_keep_rows_of_the_same_machine_only(tmp_path):
    row = Row("a", 2.0, floor=1.0, peak_gib=3.0, conditions={"b": 1})
    Results(tmp_path / "a.json", MACHINE).add(row)
    again = Results(tmp_path / "a.json", MACHINE)
    assert again.rows == {"a": row}
    assert again.rows["a"].ratio == 0.5
    assert Results(tmp_path / "a.json", {"device": "another"}).rows == {}


def test_the_roofline_is_the_sum_of_matmuls_and_attention():
    results = Results(None, MACHINE)
    assert roofline_seconds(RELEASED.dit, results) is None
    for shape, seconds in zip(linear_shapes(RELEASED.dit), (2.0, 3.0, 5.0), strict=True):
        results.add(Row(matmul_name("bf16", shape), seconds))
        results.add(Row(matmul_name("fp8", shape), seconds / 2))
    for shape, seconds in zip(frame_shapes(RELEASED.dit), (0.5, 0.25), strict=True):
        results.add(Row(frame_matmul_name(shape), seconds))
    for kind, seconds in {"sdpa": 40.0, "flash3": 30.0, "triton": 20.0}.items():
        results.add(Row(attention_name(kind), seconds))
    assert roofline_seconds(RELEASED.dit, results) == 40 * (6 * 2 + 3 + 5 + 0.75 + 30)
    assert roofline_seconds(RELEASED.dit, results, "fp8", True) == 40 * (5 * 1 + 2 + 4 + 0.75 + 20)


def test_the_released_size_has_the_known_operation_counts():
    """Operations of one forward pass: linear layers, folded audio attention, and self-attention."""
    config, tokens = RELEASED.dit, RELEASED.grid.tokens
    assert tokens == 32_760
    linear = sum(2 * tokens * rows * columns * n for (rows, columns), n in linear_shapes(config).items())
    assert linear * config.num_layers == pytest.approx(0.78e15, rel=0.005)
    folded = sum(2 * tokens * rows * columns for rows, columns in frame_shapes(config))
    assert folded * config.num_layers == pytest.approx(0.034e15, rel=0.02)
    assert 4 * tokens**2 * config.dim * config.num_layers == pytest.approx(0.88e15, rel=0.005)


def test_jobs_add_up():
    parts = {"forward": 2.0, "attention": 1.2, "skipped": 0.1, "outside": 0.5, "decode": 3.0}
    job, grid = JOBS[FAST], RELEASED.grid
    whole = plan_chunks(200, 81, 9)
    assert total(job, whole, 0.5, parts, grid) == pytest.approx(3 * (8 * (2 * 1.05 + 0.5) + 3.0))
    trimmed = plan_chunks(200, 81, 9, trim=True)
    part = 15 / 21  # 9 overlap frames and 47 new ones need 57 frames
    last = 8 * (2 * (part * 0.8 + part**2 * 1.2) + part * 0.5) + part * 3.0
    assert total(job, trimmed, 0.0, parts, grid) == pytest.approx(2 * (8 * (2 * 2.0 + 0.5) + 3.0) + last)
    results = Results(None, MACHINE)
    for name, seconds in {COMPILED: 2.0, SKIPPED: 0.1, OUTSIDE: 0.5, DECODE: 3.0}.items():
        results.add(Row(name, seconds))
    add_jobs(RELEASED, CPU, results)
    assert len(results.rows) == 4 + 3 * 2 * 4
    assert results.rows["job: 8 seconds, 40 steps, 0% skipped, bf16, compiled"].conditions["chunks"] == 3


def test_a_random_checkpoint_is_written_in_shards_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 50_000)
    fields = checkpoint.random_checkpoint(tmp_path / "weights", TINY)
    files = checkpoint_files(GenerationParams(audio_path="none", image_path="none", **fields))
    assert len(list(files.wan.glob("diffusion_pytorch_model-*.safetensors"))) > 2
    dit = checkpoints.load_dit(files, None, "cpu")
    assert dit.config == TINY.dit
    weights = [dit.get_parameter(f"blocks.0.self_attn.{part}.weight") for part in "qk"]
    assert not torch.equal(*weights)
    assert all(weight.std().item() == pytest.approx(checkpoint.SPREAD, rel=0.05) for weight in weights)


@pytest.mark.slow
def test_loading_and_offloading_are_measured_from_files(tmp_path):
    out = tmp_path / "figures.json"
    parts = ["load", "offload", "small-host", "videos"]
    assert main(["--size", "tiny", "--device", "cpu", "--out", str(out), "--only", *parts]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    begun = rows["load: process start to first forward"]["conditions"]
    stamps = [begun[stamp] for stamp in PARTS.values()]
    assert stamps == sorted(stamps)
    assert stamps[0] > 0
    assert sum(rows[f"load: start, {part}"]["seconds"] for part in PARTS) == pytest.approx(stamps[-1])
    for name in (
        "64x64, all blocks stay",
        "64x64, 8.0 GiB",
        "96x64, 2 blocks, all blocks stay",
        "64x64, 8.0 GiB, fp8",
        "64x64, 8.0 GiB, fp8, two speakers",
    ):
        conditions = rows[f"offload: {name}"]["conditions"]
        assert conditions["resident_host_gib"] > conditions["anonymous_host_gib"] > 0
        assert conditions["stages"].keys() == {"text", "audio", "image", "vae_encode", "sampling", "decode"}
    slow, fast = (rows[name.replace("job", "video")] for name in (FAST, FOUR_STEPS))
    assert slow["seconds"] > fast["seconds"] > fast["conditions"]["time_to_first_frame"] > 0
    table = profile.read(tmp_path / "profile.json")
    assert table["run"].n_unique() == 1 + 5 + 2 + 2
    assert profile.fit(table)["stages"].keys() == conditions["stages"].keys()


def test_the_pages_show_the_published_figures_once():
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("performance*.md"))
    shown = re.findall(r"<!-- (outputs/\S+) -->\n(.*?)\n<!-- end -->", pages, re.S)
    assert PUBLISHED
    assert sorted(file for file, _ in shown) == [str(file.relative_to(ROOT)) for file in PUBLISHED]
    for file, table in shown:
        assert table == markdown(read_rows(ROOT / file))
