"""The panel without a browser: edit, generate, stop, continue, compare, save."""

import asyncio
import threading
import time

import pytest
import yaml
from matplotlib import get_data_path

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.media.video import probe
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import find_runs, growing_video
from talkinghead_lab.widgets.jobs import GenerationThread, in_words


def wait_for(condition, panel, seconds=60.0):
    """Refresh the panel until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        panel.wait(0.02)


def folders(panel):
    return [run.folder for run in panel.runs]


def test_edited_values_are_in_the_request(panel_for, request_for):
    panel = panel_for()
    panel.form["audio_guide_scale"].widget.value = 2.5
    panel.form["seed"].widget.value = "7"
    assert panel.params == request_for(audio_guide_scale=2.5, seed=7)
    changed = {name for name, control in panel.form.controls.items() if "thl-changed" in control._dom_classes}
    assert changed == {"audio_guide_scale", "seed"}
    panel.reset_button.click()
    assert panel.params == request_for()


@pytest.mark.parametrize(
    ("name", "typed", "message"),
    [("seed", "abc", "valid integer"), ("frame_size", "100x100", "multiples of 16"),
     ("motion_frame", 9, "must be smaller than chunk_frames")],
)  # fmt: skip
def test_an_invalid_value_is_reported_and_generates_nothing(panel_for, name, typed, message):
    panel = panel_for()
    before = panel.form[name].value
    panel.form[name].widget.value = typed
    assert message in panel.complaint.value
    assert panel.generate_button.disabled
    assert "thl-wrong" in panel.form[name]._dom_classes
    panel.generate()
    assert panel.thread.busy is False
    assert panel.runs == []
    panel.form[name].value = before
    assert panel.complaint.value == ""
    assert not panel.generate_button.disabled


def test_a_photograph_for_the_bundled_model_is_warned_of_before_it_is_generated(panel_for):
    photograph = f"{get_data_path()}/sample_data/grace_hopper.jpg"
    panel = panel_for(image_path=photograph, checkpoint="embedded", frame_size="160x160")
    assert "only drawn cartoon presenters" in panel.notice.value
    assert not panel.generate_button.disabled
    panel.form["image_path"].widget.value = "sample:portrait"
    assert panel.notice.value == ""


def test_the_frame_is_shown_with_the_crop_before_it_is_generated(panel_for):
    panel = panel_for(frame_size="64x32")
    preview, centre = panel.form.preview, panel.form.preview.value
    assert centre.count("<img") == 2
    assert "kept of 320 × 320" in centre
    assert "frame of 64 × 32" in centre
    panel.form["crop"].widget.value = "top"
    assert preview.value != centre
    panel.form["crop"].widget.value = "none"
    assert "Set “Padding”" in panel.complaint.value
    assert "thl-wrong" in panel.form["pad"]._dom_classes
    assert panel.generate_button.disabled
    panel.form["pad"].value = "#00ff00"
    assert panel.complaint.value == ""
    assert preview.value.count("<img") == 2


def test_two_runs_can_be_compared(panel_for):
    panel = panel_for()
    panel.generate()
    result = panel.wait()
    assert result.frame_count == 25
    assert [clip["content"] for clip in panel.player.clips] == [result.video_path.read_bytes()]
    assert panel.status.value.startswith("Finished in")
    assert panel.bar.value == 1.0
    panel.form["seed"].widget.value = "43"
    panel.generate()
    second = panel.wait()
    assert folders(panel) == [second.run_dir, result.run_dir]
    assert [clip["key"] for clip in panel.player.clips] == [str(second.run_dir)]
    panel.gallery.select(result.run_dir)
    assert [clip["key"] for clip in panel.player.clips] == [str(result.run_dir), str(second.run_dir)]
    assert "<tr><th>Seed</th><td>42</td><td>43</td>" in panel.table.value
    assert [clip["title"] for clip in panel.player.clips] == ["seed 42", "seed 43"]
    shown = [panel.gallery.cards[run.run_dir, True].summary.value for run in (result, second)]
    assert [f">seed {42 + place}</b>" in card for place, card in enumerate(shown)] == [True, True]
    panel.gallery.cards[result.run_dir, True].use.click()
    assert panel.params.seed == 42


def test_many_clicks_start_one_run(panel_for):
    panel = panel_for(max_frames=9)
    for _ in range(5):
        panel.generate_button.click()
    assert panel.generate_button.disabled
    assert not panel.stop_button.disabled
    panel.wait()
    assert len(panel.runs) == 1
    assert not panel.generate_button.disabled
    assert panel.stop_button.disabled


def test_finished_chunks_are_shown_with_sound_and_kept_after_stop(panel_for, tmp_path):
    panel = panel_for(diffusion_steps=10)
    panel.generate()
    wait_for(lambda: panel._parts_shown, panel)
    assert "under way" in panel.player.clips[0]["title"]
    seen = tmp_path / "seen.mp4"
    seen.write_bytes(panel.player.clips[0]["content"])
    facts = probe(seen)
    assert facts.codecs == ("h264", "aac")
    assert facts.frame_count in (9, 13, 17, 21)
    panel.stop_button.click()
    assert panel.stop_button.disabled
    assert panel.wait() is None
    assert panel.status.value.startswith("Stopped")
    (run,) = panel.runs
    assert not run.finished
    assert run.parts
    panel.gallery.cards[run.folder, False].resume.click()
    result = panel.wait()
    assert result.run_dir == run.folder
    assert result.frame_count == 25
    assert yaml.safe_load((run.folder / "run.json").read_text())["chunks_of_earlier_calls"] >= 1


def test_a_run_stopped_at_once_leaves_nothing(panel_for, monkeypatch):
    panel = panel_for()
    reading = "talkinghead_lab.widgets.jobs.read_inputs"
    monkeypatch.setattr(reading, lambda params: panel.thread.job.stop.wait(60))
    panel.generate()
    panel.stop()
    panel.wait()
    assert panel.status.value == "Stopped before anything was made."
    assert panel.runs == []


def test_a_long_run_shows_only_its_newest_chunks(panel_for, monkeypatch, tmp_path):
    panel = panel_for(diffusion_steps=10)
    panel.generate()
    wait_for(lambda: panel._parts_shown >= 2, panel)
    panel.stop()
    panel.wait()
    (run,) = panel.runs
    seen = tmp_path / "seen.mp4"
    seen.write_bytes(growing_video(run.folder))
    assert probe(seen).frame_count == sum(probe(part).frame_count for part in run.parts)
    monkeypatch.setattr("talkinghead_lab.runs.history.LARGEST_PREVIEW", 0)
    seen.write_bytes(growing_video(run.folder))
    assert probe(seen).frame_count == probe(run.parts[-1]).frame_count


def test_after_a_failure_the_next_run_works(panel_for):
    panel = panel_for()
    panel.form["image_path"].widget.value = "/nowhere.png"
    panel.generate()
    with pytest.raises(TalkingHeadError, match="no such file"):
        panel.wait()
    assert "no such file" in panel.status.value
    assert "nowhere.png" in panel.status.value
    assert panel.bar.bar_style == "danger"
    assert panel.runs == []
    panel.form["image_path"].widget.value = "sample:portrait"
    panel.form["device"].widget.value = "cuda:99"
    panel.generate()
    with pytest.raises(TalkingHeadError, match="no such GPU"):
        panel.wait()
    panel.form["device"].widget.value = "cpu"
    panel.generate()
    assert panel.wait().frame_count == 25


def test_an_unexpected_error_is_shown_with_its_traceback(panel_for, monkeypatch):
    monkeypatch.setattr("talkinghead_lab.widgets.jobs.read_inputs", lambda params: 1 // 0)
    panel = panel_for()
    panel.generate()
    with pytest.raises(TalkingHeadError, match="ZeroDivisionError"):
        panel.wait()
    assert "<details>" in panel.status.value
    assert "Traceback" in panel.status.value


def test_a_reopened_panel_shows_the_running_job(panel_for):
    first = panel_for(diffusion_steps=10)
    first.generate()
    second = panel_for(diffusion_steps=10)
    assert second.thread is first.thread
    assert second.generate_button.disabled
    assert not second.stop_button.disabled
    second.generate()
    wait_for(lambda: second.thread.job.progress is not None, second)
    second.stop_button.click()
    second.wait()
    assert len(second.runs) == 1
    assert second.status.value.startswith("Stopped")
    threads = [thread for thread in threading.enumerate() if isinstance(thread, GenerationThread)]
    assert len(threads) == 1


def test_a_new_panel_finds_past_runs(panel_for, project):
    panel = panel_for(max_frames=9)
    panel.generate()
    result = panel.wait()
    broken = project / "outputs" / "broken"
    broken.mkdir()
    (broken / "request.yaml").write_text((result.run_dir / "request.yaml").read_text())
    (broken / "run.json").write_text('{"result": {}}')
    (project / "outputs" / "other").mkdir()
    again = panel_for()
    assert folders(again) == [broken, result.run_dir], "a damaged run has a card"
    assert [clip["key"] for clip in again.player.clips] == [str(result.run_dir)]
    assert find_runs(project / "nowhere") == []


def test_the_panel_refreshes_itself_in_an_event_loop(panel_for):
    async def generate_and_sleep():
        panel = panel_for(max_frames=9)
        panel.generate_button.click()
        for _ in range(600):
            await asyncio.sleep(0.1)
            if panel.status.value.startswith("Finished"):
                return panel
        raise TimeoutError

    panel = asyncio.run(generate_and_sleep())
    assert len(panel.player.clips) == 1
    assert not panel.generate_button.disabled


def test_saving_writes_the_same_request_and_overwrites_nothing(panel_for, project):
    panel = panel_for(seed=5)
    path = panel.save()
    assert path == project / "outputs" / "params" / "tuned.yaml"
    assert "outputs/params/tuned.yaml" in panel.saved.value
    assert GenerationParams.from_yaml(path) == panel.params
    assert set(yaml.safe_load(path.read_text())) == set(GenerationParams.model_fields)
    assert panel.file_name.value == "tuned-2"
    panel.file_name.value = "tuned"
    assert panel.save() is None
    assert "not overwritten" in panel.failure.value
    assert panel.saved.value == ""
    panel.file_name.value = "../up"
    assert panel.save() is None
    assert "not overwritten" not in panel.failure.value
    assert not (project / "outputs" / "up.yaml").exists()


def test_the_error_of_an_action_goes_with_the_next_and_disables_nothing(panel_for, project):
    panel = panel_for()
    panel.form["seed"].widget.value = "7"
    panel.file_name.value = "my look/../x"
    panel.save()
    assert "file name is not allowed" in panel.failure.value
    assert panel.complaint.value == ""
    assert not panel.generate_button.disabled
    panel.file_name.value = "my look"
    saved = panel.save()
    assert panel.failure.value == ""
    assert panel.preset.value == str(saved)
    assert panel.params.drawn_seed == 7
    panel.generate()
    assert panel.wait().frame_count == 25
    assert (panel.failure.value, panel.unshown.value, panel.preset.value) == ("", "", str(saved))
    (project / "outputs" / "params" / "broken.yaml").write_text("seed: none\n")
    panel.preset.options = (*panel.preset.options, ("broken", "broken.yaml"))
    panel.preset.value = "broken.yaml"
    assert "broken.yaml" in panel.failure.value
    panel.form["seed"].widget.value = "8"
    assert panel.failure.value == ""


def test_the_shell_accepts_the_saved_file(panel_for, project):
    panel = panel_for(max_frames=9)
    path = panel.save()
    assert main(["generate", str(path), "--run", str(project / "run")]) == 0
    assert GenerationParams.from_yaml(project / "run" / "request.yaml") == panel.params


def test_presets_are_all_files_with_a_request(panel_for, project):
    panel = panel_for(seed=5)
    names = [name for name, _ in panel.preset.options]
    assert "embedded" in names
    assert "infinitetalk-480" in names
    assert "sweep-cfg" not in names
    panel.save()
    assert panel.preset.options[-1] == ("tuned", str(project / "outputs" / "params" / "tuned.yaml"))
    panel.preset.value = dict(panel.preset.options)["embedded-fast"]
    assert panel.params == GenerationParams.from_yaml(project / "params" / "embedded-fast.yaml")
    panel.preset.value = dict(panel.preset.options)["tuned"]
    assert panel.params.seed == 5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
