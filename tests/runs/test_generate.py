"""Runs on disk: what a user gets, what survives a stop, and what bad input gets."""

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead_lab import GenerationParams, generate
from talkinghead_lab.errors import InvalidRequest, MediaError, OutputError, Stopped
from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.foundation.schema import SCHEMA_VERSION
from talkinghead_lab.media import video
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.runs.folder import read_record
from talkinghead_lab.runs.jobs import Progress
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.result import GenerationResult
from tests.pipeline.start import resolved_for, start
from tests.runs.processes import forking


@pytest.fixture(scope="module")
def pipeline(request_for) -> Pipeline:
    return Pipeline.load(request_for())


@pytest.fixture
def run(pipeline, tmp_path):
    def generated(params, **options) -> GenerationResult:
        return generate(
            params,
            options.pop("run_dir", tmp_path / "run"),
            pipeline=options.pop("pipeline", pipeline),
            show_progress=False,
            **options,
        )

    return generated


def frames_of(result: GenerationResult) -> np.ndarray:
    return np.stack(list(video.read_frames(result.video_path)))


def digests(record: dict) -> list[tuple[str, str]]:
    return [(chunk["latent_sha256"], chunk["frames_sha256"]) for chunk in record["chunks"]]


def test_result(run, request_for):
    result = run(request_for())
    facts = video.probe(result.video_path)
    assert (facts.width, facts.height, facts.frame_count) == (32, 32, 25)
    assert facts.duration_seconds == facts.audio_seconds == result.duration_seconds == 1.0
    assert result.resolution == "32x32"
    assert result.frame_count == 25
    assert result.video_path.name.startswith("infinitetalk_32x32_a-calm-presenter_")
    expected = {
        "seed": "42", "diffusion_steps": "1", "text_guide_scale": "5.0", "audio_guide_scale": "4.0",
        "resolution_bucket": "infinitetalk-480", "actual_resolution": "32x32", "motion_frame": "5",
        "color_correction": "true", "timestamp": result.metadata["timestamp"],
    }  # fmt: skip
    assert result.metadata == expected
    assert sorted(path.name for path in result.run_dir.iterdir()) == sorted(
        [result.video_path.name, "contact_sheet.png", "request.yaml", "run.json"]
    )


def test_the_video_carries_its_request(run, request_for):
    params = request_for(seed=3)
    assert GenerationParams.from_video(run(params).video_path) == params


def test_record(run, request_for):
    params = request_for()
    result = run(params)
    record = json.loads((result.run_dir / "run.json").read_text())
    assert GenerationParams(**record["request"]) == params
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["resolved"] == {
        "frame_size": "32x32", "crop": [0, 0, 320, 320], "frames": 25, "chunks": 5, "seconds": 1.0,
        "shots": [0.0], "prompts": [0.0],
        "sample_shift": 7.0, "sigmas": [1.0, 0.0], "forward_passes": 15,
        "skippable_passes": 0, "lora_strengths": [],
        "guided_by_text": True, "guided_by_audio": True, "device": "cpu", "compute_type": "float32",
        "stored": {"float16": 353}, "storage_type": None, "decode_type": "float32", "attention": "sdpa",
        "compiled": False, "offloaded": False, "vram_budget_gib": None, "warnings": [],
    }  # fmt: skip
    assert record["kernels"] == {
        "self_attention": "sdpa", "cross_attention": "sdpa", "fused_layers": False, "fp8_matmuls": 0,
        "fused_fp8_layers": False, "processes": 1, "exchange": None, "fused_vae_blocks": False,
        "optional": {
            "flash3": "not available: needs a GPU of compute capability 9.0 or higher",
            "vae_blocks": "not available: needs a GPU of compute capability 8.0 or higher",
        },
    }  # fmt: skip
    assert record["checks"]["frame_count"] == {"passed": True, "measured": 25}
    assert {"read", "text", "audio", "image", "vae_encode", "sampling", "decode", "mux"} <= set(
        record["stages"]
    )
    assert [chunk["new"] for chunk in record["chunks"]] == [9, 4, 4, 4, 4]
    assert len(record["inputs"]["audio_path"]) == 64
    assert GenerationResult.from_run(result.run_dir) == result


def test_warnings_are_logged_before_anything_is_loaded_and_recorded(request_for, tmp_path, caplog):
    params = request_for(max_frames=9)
    inputs = replace(read_inputs(params), warnings=("The recording is silent.", "The picture is dark."))

    def logged(progress: Progress) -> None:
        assert [record.getMessage() for record in caplog.records] == list(inputs.warnings)

    result = generate(params, tmp_path / "run", inputs=inputs, on_progress=logged, show_progress=False)
    record = json.loads((result.run_dir / "run.json").read_text())
    assert record["resolved"]["warnings"] == list(inputs.warnings)
    assert record["checks"]["no_warnings"] == {
        "passed": None, "measured": "2 given", "reason": " ".join(inputs.warnings)
    }  # fmt: skip


def test_the_record_names_what_the_video_was_made_from(run, request_for):
    result = run(request_for(max_frames=9))
    record = json.loads((result.run_dir / "run.json").read_text())
    ckpt_dir = Path(request_for().ckpt_dir)
    (transformer,) = ckpt_dir.glob("diffusion_pytorch_model*.safetensors")
    assert record["weights"][f"wan/{transformer.name}"] == sha256(transformer.read_bytes()).hexdigest()
    assert {name.partition("/")[0] for name in record["weights"]} == {"wan", "wav2vec2", "infinitetalk"}
    assert record["video_sha256"] == sha256(result.video_path.read_bytes()).hexdigest()
    assert {"talkinghead_lab", "git", "torch", "torch_threads", "driver", "deterministic_algorithms"} <= set(
        record["environment"]
    )
    for stage in record["stages"].values():
        assert stage["seconds"] > 0
        assert 0.05 < stage["peak_host_gib"] < 100
    for measure in record["measures"]:
        assert (measure["value"] is None) == (measure["why_not"] is not None), measure


def test_a_run_opens_its_recording_once_and_decodes_its_video_once(
    run, request_for, recording, tmp_path, monkeypatch
):
    copy = tmp_path / "speech.wav"
    copy.write_bytes(Path(recording(1.0)).read_bytes())
    opened, demuxed, counting, plain = [], [], [True], av.open

    def counted(file, *arguments, **options):
        demuxed.append(getattr(file, "name", str(file)))
        return plain(file, *arguments, **options)

    sys.addaudithook(
        lambda event, given: opened.append(str(given[0])) if counting and event == "open" else None
    )
    monkeypatch.setattr(av, "open", counted)
    result = run(request_for(audio_path=str(copy)))
    counting.clear()
    assert opened.count(str(copy)) == 1, "it is copied"
    copies = [name for name in demuxed if name.endswith(".wav")]
    assert len(copies) == 1
    assert not Path(copies[0]).exists(), "the copy is removed"
    assert demuxed.count(str(result.video_path)) == 2, "once for its index, once to decode it"


def test_a_full_disk_leaves_a_run_that_goes_on(run, request_for, tmp_path):
    params = request_for()
    undisturbed = run(params, run_dir=tmp_path / "undisturbed")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(progress: Progress) -> None:
        if progress.chunk == 3:
            while not (tmp_path / "run" / "chunks" / "00001.safetensors").exists():
                time.sleep(0.01)  # it is saved while the next is sampled
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(OutputError, match="no space left"):
            run(params, on_progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = sorted(path.name for path in (tmp_path / "run" / "chunks").iterdir())
    assert kept == ["00000.mp4", "00000.safetensors", "00001.mp4", "00001.safetensors", "growing.mp4"]
    result = run(params)
    assert result.video_path.read_bytes() == undisturbed.video_path.read_bytes()


def test_chunks_of_other_weights_are_made_again(run, request_for, recording, tmp_path):
    copy = tmp_path / "mine.wav"
    copy.write_bytes(Path(recording(1.0)).read_bytes())
    params = request_for(audio_path=str(copy))
    with pytest.raises(Stopped):
        run(params, on_progress=lambda p: p.chunk < 3)
    copy.write_bytes(Path(recording(0.5)).read_bytes())
    seen: list[Progress] = []
    assert run(params, on_progress=seen.append).frame_count == 12
    assert [p.chunk for p in seen] == [1, 2]


def test_it_displays_itself(run, request_for):
    assert '<video controls width="320" src="data:video/mp4' in run(request_for(max_frames=5))._repr_html_()


@pytest.mark.parametrize("seconds", [0.2, 0.05, 0.5])
def test_the_video_lasts_as_long_as_the_recording(run, request_for, recording, seconds):
    result = run(request_for(audio_path=recording(seconds)))
    assert result.frame_count == max(1, int(seconds * 25))
    assert video.probe(result.video_path).frame_count == result.frame_count


def test_max_frames(run, request_for):
    assert run(request_for(max_frames=11)).frame_count == 11


def test_progress_counts_every_step(run, request_for):
    seen: list[Progress] = []
    run(request_for(max_frames=13, diffusion_steps=2), on_progress=seen.append)
    assert [(p.chunk, p.step) for p in seen] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all((p.chunks, p.steps) == (2, 2) for p in seen)


def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(run, request_for, tmp_path):
    params = request_for(diffusion_steps=2)
    undisturbed = run(params, run_dir=tmp_path / "undisturbed")
    with pytest.raises(Stopped):
        run(params, on_progress=lambda p: not (p.chunk == 3 and p.step == 1))
    resumed: list[Progress] = []
    result = run(params, on_progress=resumed.append)
    assert resumed[0].chunk == 3, "finished chunks are not sampled again"
    assert np.array_equal(frames_of(result), frames_of(undisturbed))
    records = [json.loads((r.run_dir / "run.json").read_text()) for r in (result, undisturbed)]
    assert digests(records[0]) == digests(records[1])
    assert result.video_path.read_bytes() == undisturbed.video_path.read_bytes()


def test_a_finished_run_is_returned_as_it_is(run, request_for, monkeypatch):
    first = run(request_for(max_frames=5))
    before = first.video_path.stat()
    # Nobody waits for their thread: if it still hashed when Python ends, it could abort the process.
    monkeypatch.setattr(InputDigests, "begin", lambda *_: pytest.fail("hashed the weights"))
    assert run(request_for(max_frames=5), on_progress=lambda p: pytest.fail("sampled again")) == first
    assert first.video_path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_run_goes_on_with_another_budget(pipeline, run, request_for):
    smallest = pipeline.requirements(resolved_for(request_for())).smallest / GIB + 1e-6
    offloaded = Pipeline.load(request_for(vram_budget_gib=smallest))
    with pytest.raises(Stopped):
        run(request_for(vram_budget_gib=smallest), pipeline=offloaded, on_progress=lambda p: p.chunk < 2)
    resumed: list[Progress] = []
    run(request_for(vram_budget_gib=64), pipeline=offloaded, on_progress=resumed.append)
    assert resumed[0].chunk == 2


def test_a_run_resumes_on_another_device(run, request_for):
    with pytest.raises(Stopped):
        run(request_for(device="cpu"), on_progress=lambda p: p.chunk < 2)
    resumed: list[Progress] = []
    run(request_for(device="auto"), on_progress=resumed.append)
    assert resumed[0].chunk == 2


def test_networks_of_another_request_are_refused(run, request_for, tmp_path):
    with pytest.raises(InvalidRequest, match="the loaded networks are not those of this request"):
        run(request_for(precision="int8"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_request_does_not_get_the_folder(run, request_for):
    run(request_for(max_frames=5))
    with pytest.raises(OutputError, match="another request"):
        run(request_for(max_frames=5, seed=7))


@pytest.mark.parametrize("content", [b"", b"audio_path: a\nmoti", b"\xff\xfe\0", b"seed: 1\nseed: 2"])
def test_a_folder_whose_request_is_damaged_is_not_called_that_of_another(run, request_for, tmp_path, content):
    (tmp_path / "request.yaml").write_bytes(content)
    with pytest.raises(OutputError, match=r"(?s)request of the run cannot be read.*Restore it from a copy"):
        run(request_for(), run_dir=tmp_path)
    assert (tmp_path / "request.yaml").read_bytes() == content


def test_a_run_that_another_process_makes_is_left_to_it(run, request_for, tmp_path):
    params = request_for()
    other = forking().Process(target=generate_slowly, args=(params, tmp_path / "run"))
    other.start()
    while not (tmp_path / "run" / "request.yaml").is_file():
        time.sleep(0.01)
    with pytest.raises(OutputError, match=f"by process {other.pid}.*{tmp_path / 'run'}"):
        run(params)
    other.kill()
    other.join()
    assert run(params).frame_count == 25
    assert not (tmp_path / "run" / ".lock").exists()


def generate_slowly(params: GenerationParams, run_dir: Path) -> None:
    generate(params, run_dir, on_progress=lambda progress: time.sleep(60), show_progress=False)


def test_a_folder_with_other_things_is_left_alone(run, request_for, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run(request_for(), run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_notebook_of_a_run_may_wait_in_its_folder(run, request_for, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "executed.ipynb").write_text("{}")
    assert run(request_for(max_frames=5)).run_dir == tmp_path / "run"
    assert (tmp_path / "run" / "executed.ipynb").exists()


def test_bad_media_is_told_before_anything_is_made(run, request_for, tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        run(request_for(audio_path=str(tmp_path / "nothing.wav")))
    assert not (tmp_path / "run").exists()


def test_missing_gpu_is_named(request_for):
    with pytest.raises(InvalidRequest, match="cuda:97"):
        Pipeline.load(request_for(device="cuda:97"))


def test_two_speakers_and_dubbing(run, request_for, recording, tmp_path):
    two = request_for(
        image_path="sample:two-people", second_audio_path=recording(0.5), audio_mix="add", frame_size="64x32"
    )
    assert run(two, run_dir=tmp_path / "two").frame_count == 37
    dubbed = run(request_for(image_path="sample:driving"), run_dir=tmp_path / "dubbed")
    assert dubbed.frame_count == 25


def test_speakers_may_share_the_frame_without_background(run, request_for, recording):
    boxes = ((0, 0, 160, 160), (160, 0, 320, 160))
    params = request_for(
        image_path="sample:two-people", second_audio_path=recording(0.5), speaker_boxes=boxes, max_frames=9,
        frame_size="64x32",
    )  # fmt: skip
    generator = start(params, Pipeline.load(params))
    assert generator.regions.sum(dim=1).tolist() == [4, 4, 0]
    assert generator.generate(generator.resolved.chunks[0]).latent.isfinite().all()


def test_a_box_that_is_too_small_is_refused_before_anything_is_loaded(request_for, recording, monkeypatch):
    boxes = ((0, 0, 40, 160), (160, 0, 320, 160))
    params = request_for(
        image_path="sample:two-people", second_audio_path=recording(0.5), speaker_boxes=boxes,
        frame_size="64x32",
    )  # fmt: skip
    monkeypatch.setattr(Pipeline, "load", None)
    with pytest.raises(
        InvalidRequest, match=r"speaker 1 .*received \[0, 0, 40, 160\].* at least 80x80 pixels"
    ):
        generate(params)


def shell(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "talkinghead_lab", *arguments], capture_output=True, text=True, check=False
    )


def test_two_processes_make_the_same_bytes(request_for, tmp_path):
    request = tmp_path / "params.yaml"
    request.write_text(request_for(max_frames=13).to_yaml())
    videos = []
    for name in ("first", "second"):
        done = shell("generate", str(request), "-p", "seed", "7", "--run", str(tmp_path / name), "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert list(result) == ["video_path", "duration_seconds", "resolution", "frame_count", "metadata"]
        assert result["metadata"]["seed"] == "7"
        record = json.loads((tmp_path / name / "run.json").read_text())
        videos.append((digests(record), Path(result["video_path"]).read_bytes()))
    assert videos[0] == videos[1]


def test_exit_status_tells_bad_input_from_failure(request_for, tmp_path):
    request = tmp_path / "params.yaml"
    request.write_text(request_for().to_yaml())
    done = shell("generate", str(request), "-p", "seeed", "7")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean `seed`?" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "notes.txt").write_text("mine")
    assert shell("generate", str(request), "--run", str(tmp_path)).returncode == 1


def test_a_random_seed_is_drawn_once_and_recorded(request_for, tmp_path, monkeypatch):
    params = request_for(seed="random", max_frames=13)
    run = tmp_path / "run"
    stopped = iter([True, False])
    with pytest.raises(Stopped):
        generate(params, run, on_progress=lambda progress: next(stopped), show_progress=False)
    drawn = GenerationParams.from_yaml(run / "request.yaml").seed
    result = generate(params, run, show_progress=False)
    record = json.loads((run / "run.json").read_text())
    assert record["request"]["seed"] == drawn
    assert isinstance(drawn, int) and result.metadata["seed"] == str(drawn)
    assert record["chunks_of_earlier_calls"] == 1
    assert GenerationParams.from_video(result.video_path).seed == drawn
    again = generate(params.replace(seed=drawn), tmp_path / "same", show_progress=False)
    assert again.video_path.read_bytes()[-2000:] == result.video_path.read_bytes()[-2000:]
    other = generate(params, tmp_path / "other", show_progress=False)
    assert other.metadata["seed"] != str(drawn)


def test_a_driving_video_overwritten_during_a_run_changes_nothing(run, request_for, tmp_path):
    def film(level: int) -> bytes:
        frames = (
            np.full((25, 64, 64, 3), level, np.uint8) + np.arange(25, dtype=np.uint8)[:, None, None, None]
        )
        video.write_video(tmp_path / f"{level}.mp4", [frames], None, 25, {})
        return (tmp_path / f"{level}.mp4").read_bytes()

    path = tmp_path / "film.mp4"
    path.write_bytes(film(30))
    digest = sha256_of_file(path)
    params, other = request_for(image_path=str(path)), film(200)
    undisturbed = read_record(run(params, run_dir=tmp_path / "undisturbed").run_dir)

    def overwrite(progress: Progress) -> None:
        path.write_bytes(other)  # in place: an open file would see it

    record = read_record(run(params, on_progress=overwrite).run_dir)
    assert record["inputs"]["image_path"] == digest
    assert digests(record) == digests(undisturbed)
    assert len(digests(record)) > 2
    again = read_record(run(params, run_dir=tmp_path / "again").run_dir)
    assert digests(again) != digests(undisturbed)
