"""The time left counts all work of a run, is close to the truth, and never climbs by more than a fifth.

`stage_times.json` has what real runs of the bundled model told on two busy cores, with the times. A simulated
clock plays them again, also as other machines would have run them.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest

from talkinghead_lab.pipeline.encoder_cache import EncoderCache
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.runs.jobs import GenerationJob
from talkinghead_lab.runs.time_left import STARTING, TimeLeft, Work, in_words
from talkinghead_lab.service.jobs import QueuedJob
from talkinghead_lab.service.schemas import JobView
from talkinghead_lab.widgets.jobs import PanelJob, status_html

RUNS = {run["name"]: run for run in json.loads((Path(__file__).parent / "stage_times.json").read_text())}
TICK = 0.1  # seconds


def work_of(run: dict) -> Work:
    chunks = [SimpleNamespace(frames=f, repeated=repeated, new=new) for f, repeated, new in run["chunks"]]
    fields = ("finished", "steps", "pixels", "checkpoint", "cached")
    passes = run["passes"] if isinstance(run["passes"], tuple) else (run["passes"],) * run["steps"]
    return Work(chunks=chunks, passes=passes, **{name: run[name] for name in fields})


def played(run: dict, time_left: Callable[..., TimeLeft] = TimeLeft) -> Iterator[tuple[float, TimeLeft]]:
    """The moments of a run, a tenth of a second apart and after every event, with what is known then."""
    now = 0.0
    left = time_left(now=lambda: now)
    for moment, event, *given in [*run["events"], [run["end"], "end"]]:
        while now + TICK < moment:
            now += TICK
            yield now, left
        now = moment
        if event == "plan":
            left.plan(work_of(run))
        elif event != "end":
            getattr(left, event)(*given)
        yield now, left


def slower(run: dict, stages: tuple[str, ...], factor: float, after: float = 0.0) -> dict:
    """The same run, some stages of which take longer, from some moment on."""
    run, stage, last, shift = deepcopy(run), "", 0.0, 0.0
    for event in run["events"]:
        if stage in stages and event[0] > after:
            shift += (factor - 1) * (event[0] - max(last, after))
        last = event[0]
        event[0] += shift
        stage = event[2] if event[1] == "enter" else stage
    return run | {"end": run["end"] + shift}


ALL = ("sampling", "decode", "vae_encode", "image", "mux", "measure")
MACHINES = {
    "as recorded": lambda run: run,
    "decoding takes eight times as long": lambda run: slower(run, ("decode",), 8),
    "decoding takes a quarter": lambda run: slower(run, ("decode",), 0.25),
    "measuring takes eight times as long": lambda run: slower(run, ("measure",), 8),
    "sampling takes ten times as long": lambda run: slower(run, ("sampling",), 10),
    "everything takes three times as long": lambda run: slower(run, ALL, 3),
    "other work begins half way": lambda run: slower(run, ALL, 2.5, after=run["end"] / 2),
    "other work ends half way": lambda run: slower(slower(run, ALL, 3), ALL, 1 / 3, after=run["end"]),
}
EVERY = [(name, machine) for name in RUNS for machine in MACHINES]


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_it_never_climbs_by_more_than_a_fifth(name, machine):
    lowest = done = 0.0
    for _, left in played(MACHINES[machine](RUNS[name])):
        seconds = left.seconds()
        if seconds is not None:
            assert seconds <= 1.2 * lowest + 1e-6 or not lowest
            lowest = min(seconds, lowest) if lowest else seconds
        assert done <= left.fraction() <= 1
        done = left.fraction()
    assert done > 0.9


@pytest.mark.parametrize("machine", ["as recorded", "everything takes three times as long"])
@pytest.mark.parametrize("name", RUNS)
def test_it_is_close_to_the_truth(name, machine):
    run = MACHINES[machine](RUNS[name])
    errors = [
        abs(left.seconds() - (run["end"] - now)) for now, left in played(run) if left.seconds() is not None
    ]
    first = next(now for now, left in played(run) if left.seconds() is not None)
    assert max(errors) < 0.4 * run["end"]
    assert sum(errors) / len(errors) < 0.15 * run["end"]
    steps = [now for now, event, *_ in run["events"] if event == "step"]
    assert first == steps[min(1, run["steps"] - 1)], "known from the second step on"


@pytest.mark.parametrize("name", RUNS)
def test_decoding_and_measuring_count(name):
    """At the last step, all of what follows is left; nothing stands still while it goes on."""
    run = RUNS[name]
    last = max(now for now, event, *_ in run["events"] if event == "step")
    seen = {place: [] for place in ("decoding", "measuring the video")}
    for now, left in played(run):
        if now == last:
            assert left.seconds() > 0.3 * (run["end"] - last)
        if now > last and left.place.split(" · ")[-1] in seen:
            seen[left.place.split(" · ")[-1]].append(left.seconds())
    assert seen["decoding"][0] > seen["decoding"][-1] > seen["measuring the video"][-1]


def test_skipped_steps_do_not_count_as_computed_ones():
    """The last 5 of 10 steps of a chunk are skipped: the second chunk is foreseen as the first was."""
    chunks, moment, events = [[81, 0, 81], [81, 9, 72]], 0.0, [[0.0, "plan"]]
    for _ in chunks:
        events.append([moment, "enter", "sampling"])
        for step in range(10):
            moment += 4.0 if step < 5 else 0.2
            events.append([moment, "step"])
        events += [[moment, "enter", "decode"], [moment + 1, "decoded", 72], [moment + 1, "end_chunk"]]
        moment += 1
    fields = {"finished": 0, "steps": 10, "passes": 3, "pixels": 25_600, "checkpoint": "released"}
    run = {"chunks": chunks, "events": events, "end": moment, **fields, "cached": True}
    second = next(now for now, event, *_ in events if event == "end_chunk")
    for now, left in played(run):
        if now >= second and left.seconds() is not None:
            truth = run["end"] - now + 1.7  # measuring 153 frames, which this run leaves out
            assert left.seconds() == pytest.approx(truth, abs=3.5)


def test_steps_count_by_their_forward_passes():
    """Guidance ends after three of eight steps, which then take one pass instead of three."""
    passes = (3, 3, 3, 1, 1, 1, 1, 1)
    events, moment = [[0, "plan"], [0, "enter", "sampling"]], 0.0
    for count in passes:
        moment += 2.0 * count
        events.append([moment, "step"])
    fields = {"finished": 0, "steps": 8, "passes": passes, "pixels": 25_600, "checkpoint": "released"}
    run = {"chunks": [[81, 0, 81]], "events": events, "end": moment, **fields, "cached": False}
    told = [(now, left.seconds()) for now, left in played(run) if left.seconds() is not None and now < moment]
    assert told, "after the second step"
    rest = 2.0 + 1.4  # decoding, as long as a pass; writing and measuring
    for now, seconds in told:
        assert seconds == pytest.approx(moment - now + rest, abs=2.2)


def test_the_finished_share_is_that_of_the_work_also_after_a_fast_start():
    moment, events = 0.0, [[0.0, "plan"], [0.0, "enter", "sampling"]]
    for step in range(100):
        moment += 0.001 if step < 4 else 0.1
        events.append([moment, "step"])
    fields = {"finished": 0, "steps": 100, "passes": 1, "pixels": 1024, "checkpoint": "released"}
    run = {"chunks": [[81, 0, 81]], "events": events, "end": moment, **fields, "cached": False}
    steps = [now for now, event, *_ in events if event == "step"]
    for now, left in played(run):
        done = sum(now >= moment for moment in steps)
        assert left.fraction() <= (done + 1) / 100


def test_the_place_is_told_in_words():
    run = next(iter(RUNS.values()))
    places = list(dict.fromkeys(left.place for _, left in played(run)))
    assert places[0] == STARTING
    chunks = len(run["chunks"])
    last = f"chunk {chunks} of {chunks}"
    at = places.index(f"{last} · step {run['steps']} of {run['steps']}")
    assert places[at:] == [places[at], f"{last} · decoding", "writing the video", "measuring the video"]


def test_panel_and_service_show_it():
    run = next(iter(RUNS.values()))
    for _, left in played(run):
        panel = PanelJob(params=None, folder=Path("nowhere"), state="running", time_left=left)
        assert status_html(panel) == left.status[0].upper() + left.status[1:]
        queued = QueuedJob(params=None, id="a", state="running", started=1.0, time_left=left)
        view = JobView.of(queued, SimpleNamespace(position=lambda job: 0))
        assert view.place == left.place
        assert 0 <= view.fraction <= 1
        if left.seconds() is None:
            assert view.seconds_left is None
            assert "left" not in status_html(panel)
        else:
            assert max(1, left.seconds()) <= view.seconds_left <= left.seconds() + 1
            assert f"about {in_words(max(1, left.seconds()))} left" in status_html(panel)


class Told(TimeLeft):
    """Remembers what it was told, and what it knew then; a second passes between two looks at its clock."""

    def __init__(self):
        super().__init__(now=itertools.count(1.0).__next__)
        self.seen = []
        self.listeners.append(lambda: self.seen.append((self.place, self.seconds(), self.fraction())))


def test_a_run_tells_how_far_it_is(request_for, tmp_path, capsys):
    """A resumed run with encodings from the cache, too; the progress bar shows the same."""
    params, pipeline = request_for(diffusion_steps=2, max_frames=13), Pipeline.load(request_for())
    cache = EncoderCache.of(pipeline.loaded_as.weights, pipeline.device, tmp_path / "cache")
    told = Told()
    generate(params, tmp_path / "run", pipeline=pipeline, encoder_cache=cache, time_left=told)
    places = list(dict.fromkeys(place for place, *_ in told.seen))
    expected = ["step 0 of 2", "step 1 of 2", "step 2 of 2", "decoding", "encoding"]
    both = [f"chunk {chunk} of 2 · {what}" for chunk in (1, 2) for what in expected]
    assert [place for place in places if place in both] == both[4:5] + both[:4] + both[9:] + both[5:9]
    assert places[-2:] == ["writing the video", "measuring the video"]
    known = [seconds is not None for _, seconds, _ in told.seen]
    assert known == sorted(known), "once known, it stays known"
    assert told.listeners == told.listeners[:1], "the bar no longer listens"
    shown = capsys.readouterr().err
    assert "chunk 2 of 2 · decoding" in shown
    assert " left" in shown
    assert "it/s" not in shown
    again = Told()
    job = GenerationJob(params=params, time_left=again)
    generate(
        params,
        tmp_path / "other",
        pipeline=pipeline,
        encoder_cache=cache,
        time_left=again,
        show_progress=False,
    )
    assert again.seen[-1][0] == "measuring the video"
    shares = [fraction for *_, fraction in again.seen]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.95 < job.fraction == shares[-1] < 1.0
