"""NUM_PERSISTENT_PARAM_IN_DIT becomes a memory budget for each request; copies of inputs do not stay."""

import json
import os
import subprocess
import sys

import pytest

from talkinghead_lab.foundation.devices import GIB
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.inputs import in_allowed_folders
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.settings import ServiceSettings
from tests.service.conftest import ROOT


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


@pytest.mark.parametrize(
    "fields",
    [
        {"second_audio_path": "recording.wav", "speaker_masks": ["portrait.png", "portrait.png"]},
        {
            "audio_path": None,
            "audio_mix": "timeline",
            "segments": [{"speaker": n, "start": n, "file": "recording.wav"} for n in (1, 2)],
        },
        {"image_path": [{"start": 0, "file": "portrait.png"}, {"start": 1, "file": "portrait.png"}]},
        {"continue_video": "portrait.png"},
        {"lips_only": True, "lips_mask": "portrait.png"},
    ],
    ids=lambda fields: list(fields)[-1],
)
def test_copies_that_a_killed_process_left_go_with_their_run(checkpoint, shared, tmp_path, fields):
    generator = service(checkpoint, shared, tmp_path / "output", None)
    fields = {"audio_path": "recording.wav", "image_path": "portrait.png"} | fields
    params = generator.settings.params(**in_allowed_folders(generator.settings, fields))
    with generator._copies("one") as copy:
        paths = [copy(field, path).path for field, path in params.media.items()]
        for path in paths:  # a copy removes itself unless its process is killed
            path.parent.mkdir(exist_ok=True)
            path.touch(exist_ok=False)
    assert len(set(paths)) == len(params.media)
    assert not (generator.settings.output_dir / "one").exists()


# Prints the number of objects in the largest collection of garbage from the first job on, and what is left of
# the networks in the end. In a new process, because this one has imported everything.
COLLECTIONS = """
import gc, json, sys, weakref
import torch
from talkinghead_lab.service.generation import Generator
from talkinghead_lab.service.inputs import in_allowed_folders
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.settings import ServiceSettings

def look(phase, facts):
    generations = range(facts["generation"] + 1) if phase == "start" else ()
    sizes.append(sum(len(gc.get_objects(number)) for number in generations))

if __name__ == "__main__":
    settings, sizes = ServiceSettings.read(), []
    generator = Generator(settings)
    media = {"audio_path": sys.argv[1], "image_path": sys.argv[2]}
    gc.freeze()  # as the service does when it has started
    gc.callbacks.append(look)
    job = QueuedJob(id="job", params=settings.params(**media, diffusion_steps=1, prompt=""))
    job.begin()
    generator(job)
    generator.after(job, None)
    networks = weakref.ref(generator._pipeline.dit)
    generator.unload()
    print(json.dumps([max(sizes), gc.get_freeze_count(), networks() is None]))
"""


def test_no_collection_of_garbage_looks_at_the_libraries_and_networks_are_released(
    checkpoint, shared, tmp_path
):
    """Looking at them takes a third of a second, in which health is not answered."""
    (tmp_path / "first_job.py").write_text(COLLECTIONS)
    folders = {
        name: str(checkpoint / name.lower()) for name in ("CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR")
    }
    small = {"FRAME_SIZE": "32x32", "CHUNK_FRAMES": "9", "MOTION_FRAME": "5", "OUTPUT_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "first_job.py", shared / "recording.wav", shared / "portrait.png"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SHARED_DIR": str(shared)} | folders | small,
        stdout=subprocess.PIPE,
        check=True,
    )
    largest, frozen, released = json.loads(done.stdout)
    assert frozen > 200_000
    assert largest < frozen / 5
    assert released
