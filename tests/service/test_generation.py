"""NUM_PERSISTENT_PARAM_IN_DIT becomes a memory budget for each request."""

import gc
import json
import weakref

from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.settings import ServiceSettings


def service(checkpoint, shared, output, kept: int | None) -> Generator:
    folders = {name: checkpoint / name for name in ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")}
    small = {"frame_size": "32x32", "chunk_frames": 9, "motion_frame": 5}
    settings = ServiceSettings.read(
        shared_dir=shared, output_dir=output, num_persistent_param_in_dit=kept, **folders, **small
    )
    return Generator(settings)


def generate(generator: Generator, shared, **changes) -> dict:
    media = {"audio_path": str(shared / "recording.wav"), "image_path": str(shared / "portrait.png")}
    params = generator.settings.params(**media, diffusion_steps=1, prompt="", **changes)
    result = generator(QueuedJob(id=f"{len(changes)}", params=params))
    (record,) = generator.settings.output_dir.glob(f"{len(changes)}/run.json")
    return result | json.loads(record.read_text())


def test_each_request_gets_the_smallest_budget_plus_the_weights_kept_on_the_gpu(checkpoint, shared, tmp_path):
    kept = 10_000_000
    smallest = service(checkpoint, shared, tmp_path / "smallest", 0)
    larger = service(checkpoint, shared, tmp_path / "larger", kept)
    budgets = {}
    for name, generator in (("smallest", smallest), ("larger", larger)):
        budgets[name] = generate(generator, shared)["request"]["vram_budget_gib"] * GIB
        pipeline = generator._pipeline
        assert pipeline.budget == round(budgets[name])
        assert pipeline.dit.blocks[0].ffn[0].weight.device.type == "cpu"
    assert round(budgets["larger"] - budgets["smallest"]) == 2 * kept
    wide = generate(smallest, shared, frame_size="64x64")["request"]["vram_budget_gib"] * GIB
    assert wide > budgets["smallest"], "more pixels need more"


def test_without_the_variable_there_is_no_budget(checkpoint, shared, tmp_path):
    generator = service(checkpoint, shared, tmp_path, None)
    assert generate(generator, shared)["request"]["vram_budget_gib"] is None
    assert generator._pipeline.budget is None


def test_the_collector_leaves_out_what_stays_and_networks_are_released_all_the_same(
    checkpoint, shared, tmp_path
):
    generator = service(checkpoint, shared, tmp_path, None)
    media = {"audio_path": str(shared / "recording.wav"), "image_path": str(shared / "portrait.png")}
    job = QueuedJob(
        id="job", params=generator.settings.params(**media, diffusion_steps=1, prompt="", frame_size="32x32")
    )
    try:
        job.begin()
        generator(job)
        generator.after(job, None)
        assert len(gc.get_objects()) < gc.get_freeze_count() / 10, "a collection looks at few objects"
        networks = weakref.ref(generator._pipeline.dit)
        generator.unload()
        assert networks() is None
    finally:
        gc.unfreeze()
