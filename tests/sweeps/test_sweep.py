"""Sweeps: which runs they contain and skip, how they handle failures, and their table of results."""

import contextlib
import json
import shutil
import threading
import time
from pathlib import Path

import polars
import psutil
import pytest
import torch
import yaml

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest, OutputError
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.files import locked
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.sweeps.definition import Sweep
from talkinghead_lab.sweeps.sweep import results, run_sweep
from talkinghead_lab.workers.worker import Failure, Job, Worker

FAST = {"loras": [{"path": "sample:fast-lora"}], "text_guide_scale": 1.0, "audio_guide_scale": 1.0}


@pytest.fixture
def sections(request_for):
    base = request_for(max_frames=9).model_dump(mode="json", exclude_defaults=True)
    return {"base": base, "axes": {"text_guide_scale": [1.0, 3.0]}, "seeds": [1, 2]}


@pytest.fixture
def sweep(sections) -> Sweep:
    return Sweep.from_sections(sections)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "params").glob("sweep-*.yaml")))
def test_the_shipped_sweeps_are_valid_and_can_be_reduced(path):
    sweep = Sweep.from_yaml(path, base={"motion_frame": 5})
    assert {cell.params.motion_frame for cell in sweep.cells()} == {5}
    assert {cell.params.checkpoint for cell in sweep.cells()} == {"embedded"}
    small = sweep.reduced().cells()
    assert len(small) == 2 ** len(sweep.axes) * 2
    assert {(p.max_frames, p.chunk_frames, p.image_path) for p in (cell.params for cell in small)} == {
        (25, 25, "sample:portrait")
    }


def run_dirs(folder) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/run.json")}


def test_cells_are_all_combinations_for_every_seed_portrait_and_recording(sections):
    axes = {"diffusion_steps": {"from": 1, "to": 5, "step": 2}, "step_cache_threshold": [None, 0.2]}
    portraits = ["sample:portrait", "sample:portrait-2"]
    sweep = Sweep.from_sections(sections | {"axes": axes, "portraits": portraits})
    cells = sweep.cells()
    assert len(cells) == 3 * 2 * 2 * 2
    assert {cell.params.diffusion_steps for cell in cells} == {1, 3, 5}
    assert {(cell.params.seed, cell.params.image_path) for cell in cells} == {
        (seed, path) for seed in (1, 2) for path in portraits
    }
    assert len({cell.key() for cell in cells}) == len(cells)


def test_a_linked_axis_sets_several_fields(sections, tmp_path):
    axes = {"diffusion_steps": [1, 2], "model": {"guided": {}, "fast": FAST}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sections | {"axes": axes}, sort_keys=False))
    sweep = Sweep.from_yaml(path)
    found = [
        (
            cell.position["diffusion_steps"],
            cell.position["model"],
            len(cell.params.loras),
            cell.params.text_guide_scale,
        )
        for cell in sweep.cells()[::2]
    ]
    assert found == [(1, "guided", 0, 5.0), (1, "fast", 1, 1.0), (2, "guided", 0, 5.0), (2, "fast", 1, 1.0)]
    assert sweep.values() == {"diffusion_steps": [1, 2], "model": ["guided", "fast"]}
    path.write_text(sweep.to_yaml())
    assert Sweep.from_yaml(path).cells() == sweep.cells()
    assert {cell.position["model"] for cell in sweep.reduced().cells()} == {"guided", "fast"}


def test_a_sweep_is_read_back_from_its_yaml(sweep, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep.to_yaml())
    assert Sweep.from_yaml(path).cells() == sweep.cells()


def test_ranges_include_their_end_without_rounding_errors(sections):
    sweep = Sweep.from_sections(sections | {"axes": {"text_guide_scale": {"from": 1, "to": 2, "step": 0.1}}})
    values = [cell.position["text_guide_scale"] for cell in sweep.cells()[::2]]
    assert values == [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]
    assert Sweep.from_sections(sections | {"seeds": {"from": 2, "to": 6, "step": 2}}).seeds == (2, 4, 6)
    with pytest.raises(InvalidRequest, match=r"seeds also {from: 1, to: 40, step: 1}"):
        Sweep.from_sections(sections | {"seeds": {"from": 2}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": {}}, "Did you mean `axes`"),
        ({"axes": {"text_guid_scale": [1]}}, "Did you mean `text_guide_scale`"),
        ({"axes": {"text_guide_scale": [99]}}, "less than or equal to 30"),
        ({"axes": {"text_guide_scale": {"from": 3, "to": 1, "step": 1}}}, "is not valid"),
        ({"axes": {"seed": [1]}}, "List them under seeds"),
        ({"axes": {"seed_": []}}, "is not valid"),
        ({"axes": {"model": {"fast": {"seed": 1}}}}, "List them under seeds"),
        ({"axes": {"model": {"fast": {"lora": []}}}}, "Did you mean `loras`"),
        ({"axes": {"loras": {"fast": FAST}}}, "has a name of its own"),
        ({"axes": {"model": {"fast": FAST}, "text_guide_scale": [1]}}, "two axes set the same field"),
        ({"axes": {"model": {}}}, "is not valid"),
        *(
            ({"axes": {name: {"fast": FAST}}}, "has a name of its own")
            for name in ("", "cell", "state", "error")
        ),
        ({"axes": {"lip_correlation": {"fast": FAST}}}, "has a name of its own"),
        ({"axes": {"text_guide_scale": [1, 3, 1.0]}}, "`text_guide_scale` lists a value twice: received 1.0"),
        ({"axes": {"loras": [[], FAST["loras"], FAST["loras"]]}}, "`loras` lists a value twice"),
        ({"seeds": [1, 2, 1]}, "`seeds` lists a value twice: received 1"),
        ({"portraits": ["sample:portrait"] * 2}, "`portraits` lists a value twice"),
        ({"seeds": {"from": 0, "to": 10**12, "step": 1}}, "too many values.*allowed: up to 100000"),
        ({"axes": {"text_guide_scale": {"from": 0, "to": 30, "step": 1e-9}}}, "too many values"),
    ],
)
def test_mistakes_are_found_before_anything_runs(sections, change, message):
    with pytest.raises(InvalidRequest, match=message):
        Sweep.from_sections(sections | change)


def test_a_sweep_writes_a_table_and_skips_finished_cells(sweep, tmp_path):
    table = run_sweep(sweep, tmp_path, show_progress=False)
    assert table["state"].to_list() == ["finished"] * 4
    assert table["text_guide_scale"].to_list() == [1.0, 1.0, 3.0, 3.0]
    assert table["seed"].to_list() == [1, 2, 1, 2]
    assert table["sharpness"].null_count() == 0
    assert table["seconds_per_frame"].min() > 0
    assert table["lip_correlation"].null_count() == 4
    assert all("lip_correlation: no reader of photographed faces" in reason for reason in table["not_taken"])
    assert polars.read_parquet(tmp_path / "results.parquet").equals(table)
    assert polars.read_csv(tmp_path / "results.csv")["cell"].to_list() == table["cell"].to_list()
    before = run_dirs(tmp_path)
    assert run_sweep(sweep, tmp_path, show_progress=False).equals(table)
    assert run_dirs(tmp_path) == before


def test_a_folder_is_locked_during_a_sweep(sweep, tmp_path):
    with locked(tmp_path), pytest.raises(OutputError, match="is being written by process"):
        run_sweep(sweep, tmp_path, show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_cells_are_identified_by_the_content_of_their_media(sections, recording, tmp_path):
    mine = tmp_path / "mine.wav"
    mine.write_bytes(Path(recording(0.2)).read_bytes())
    sweep = Sweep.from_sections(sections | {"recordings": [str(mine)]})
    before = [cell.key() for cell in sweep.cells()]
    mine.write_bytes(Path(recording(0.5)).read_bytes())
    assert not set(before) & {cell.key() for cell in sweep.cells()}


def test_a_failed_cell_is_recorded_and_does_not_stop_the_others(sections, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    sound = sections["base"]["audio_path"]
    sweep = Sweep.from_sections(sections | {"axes": {}, "seeds": [1], "recordings": [str(broken), sound]})
    table = run_sweep(sweep, tmp_path / "sweep", show_progress=False)
    assert table["state"].to_list() == ["failed", "finished"]
    assert table["error"][0].startswith("MediaError: ")
    (failure,) = (tmp_path / "sweep" / "cells").glob("*.error.json")
    assert "Traceback" in json.loads(failure.read_text())["details"]
    before = failure.stat().st_mtime_ns
    run_sweep(sweep, tmp_path / "sweep", show_progress=False)
    assert failure.stat().st_mtime_ns == before, "a failed cell runs again only with retry_failed"
    run_sweep(sweep, tmp_path / "sweep", retry_failed=True, show_progress=False)
    assert failure.stat().st_mtime_ns > before


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_give_the_results_of_one(sections, tmp_path):
    sweep = Sweep.from_sections(sections | {"seeds": [1, 2, 3]})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of two workers has; the number of threads affects rounding
    try:
        one = run_sweep(sweep, tmp_path / "one", show_progress=False)
    finally:
        torch.set_num_threads(threads)
    killer = threading.Thread(target=kill_a_worker_at_work, args=(tmp_path / "two",))
    killer.start()
    table = run_sweep(sweep, tmp_path / "two", workers=2, show_progress=False)
    killer.join()
    assert sorted(table["state"]) == ["failed"] + ["finished"] * 5
    assert table.filter(state="failed")["error"].to_list() == ["the worker died with status -9"]
    table = run_sweep(sweep, tmp_path / "two", workers=2, retry_failed=True, show_progress=False)
    assert table["state"].to_list() == ["finished"] * 6
    same = ["cell", "sharpness", "motion", "color_drift"]
    assert table.select(same).equals(one.select(same))


def kill_a_worker_at_work(folder) -> None:
    """SIGKILL one child of this process once a cell has started."""
    while not cells_begun(folder):
        time.sleep(0.01)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # a child of another test may have just ended
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                return


def cells_begun(folder) -> list[Path]:
    return sorted(folder.glob("cells/*/request.yaml"))


def test_the_shell(sweep, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(Sweep(sweep.base, {}, (1,)).to_yaml())
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["finished"] == 1
    assert counts["failed"] == 0
    assert polars.read_csv(counts["table"]).height == 1


def test_cells_that_have_not_run_are_missing(sweep, tmp_path):
    assert results(sweep, tmp_path)["state"].to_list() == ["missing"] * 4
    job = Job(sweep.cells()[0].params, tmp_path / "cells" / sweep.cells()[0].key())
    job.record_failure(Failure("OutOfMemory: 3 GiB"))
    assert results(sweep, tmp_path)["error"][0] == "OutOfMemory: 3 GiB"


def test_a_sweep_file_without_a_version_is_read():
    old = Sweep.from_yaml(Path(__file__).parent / "files-0.1.0" / "sweep.yaml")
    media = {"image_path": "sample:portrait", "audio_path": "sample:recording-2"}
    base = media | {"prompt": "a calm presenter speaks to the camera", "max_frames": 49, "chunk_frames": 49}
    methods = {"guided": {}, "guided, step cache": {"step_cache_threshold": 0.5}, "fast LoRA": FAST}
    axes = {"method": methods, "diffusion_steps": [4, 8, 16], "sample_shift": [3.0, 7.0]}
    repeated = {"seeds": [1, 2], "portraits": ["sample:portrait", "sample:portrait-2"]}
    now = Sweep.from_sections({"base": base, "axes": axes} | repeated)
    assert [cell.params for cell in old.cells()] == [cell.params for cell in now.cells()]
    assert old.to_yaml().startswith("schema_version: 2\n")


FINISHED = Path(__file__).parents[1] / "runs" / "files-0.1.0"


def test_a_damaged_cell_is_one_failed_cell_until_it_is_retried(sections, tmp_path):
    sweep = Sweep.from_sections(sections | {"seeds": [1, 2, 3]})
    folders = [tmp_path / "cells" / cell.key() for cell in sweep.cells()]
    for folder, cell in zip(folders[:5], sweep.cells(), strict=False):
        shutil.copytree(FINISHED, folder)
        (folder / "request.yaml").write_text(cell.params.to_yaml())
    next(folders[0].glob("*.mp4")).unlink()
    (folders[1] / "run.json").write_text("")
    record = json.loads((folders[2] / "run.json").read_text())
    record["result"]["video_path"] = "/etc/passwd"
    (folders[2] / "run.json").write_text(json.dumps(record))
    record["result"]["video_path"] = next(folders[3].glob("*.mp4")).name
    record["measures"][0] |= {"name": "state", "value": 1.0}
    (folders[3] / "run.json").write_text(json.dumps(record))
    folders[5].with_name(f"{folders[5].name}.error.json").write_text('{"error')
    table = results(sweep, tmp_path)
    assert table["state"].to_list() == ["failed"] * 3 + ["finished"] * 2 + ["failed"]
    reasons = ["No such file", "damaged", "not the name of a file", None, None, "is damaged"]
    for reason, error in zip(reasons, table["error"], strict=True):
        assert error is None if reason is None else reason in error
    assert table["video_path"][4].startswith("cells/")
    run_sweep(sweep, tmp_path, show_progress=False)
    assert results(sweep, tmp_path)["state"].to_list() == table["state"].to_list()
    run_sweep(sweep, tmp_path, retry_failed=True, show_progress=False)
    assert results(sweep, tmp_path)["state"].to_list() == ["finished"] * 6


@pytest.mark.parametrize("where", [{"seeds": [1, "random"]}, {"base": {"seed": "random"}}])
def test_a_sweep_refuses_seeds_that_are_not_numbers(where):
    media = {"image_path": "sample:portrait", "audio_path": "sample:recording"}
    sections = where | {"base": media | where.get("base", {}), "axes": {"diffusion_steps": [1]}}
    with pytest.raises(InvalidRequest, match="List numbers under seeds"):
        Sweep.from_sections(sections)


@pytest.mark.parametrize("face", ["sweep", "worker"])
def test_networks_load_while_weights_are_hashed(request_for, monkeypatch, tmp_path, face):
    """Hashing waits here for the networks: if it came first, they would never load."""
    monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / "cache"))
    loaded, hash_file, load = threading.Event(), digests.sha256_of_file, Pipeline.load.__func__

    def hash_after_loading(path):
        assert loaded.wait(60)
        return hash_file(path)

    def loads(cls, *arguments):
        pipeline = load(cls, *arguments)
        loaded.set()
        return pipeline

    monkeypatch.setattr(digests, "sha256_of_file", hash_after_loading)
    monkeypatch.setattr(Pipeline, "load", classmethod(loads))
    params = request_for(max_frames=9)
    if face == "worker":  # as sweeps on a cluster and the panel run a job
        job = Job(params, tmp_path / "run")
        Worker().run(job)
        assert (job.run_dir / "run.json").is_file()
        return
    base = params.model_dump(mode="json", exclude_defaults=True)
    table = run_sweep(Sweep.from_sections({"base": base, "axes": {}}), tmp_path / "out", show_progress=False)
    assert table["state"].to_list() == ["finished"]
