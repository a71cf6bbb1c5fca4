"""The panel without a browser: setting, generating, stopping, continuing, comparing, saving."""

import asyncio
import threading
import time

import pytest
import yaml

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.media.video import probe
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import find_runs, growing_video, summary
from talkinghead_lab.widgets.jobs import GenerationThread, in_words


def wait_for(condition, panel, seconds=60.0):
    """Refresh the panel until it is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        panel.wait(0.02)


def folders(panel):
    return [run.folder for run in panel.runs]


def test_what_is_set_is_the_request(panel_for, request_for):
    panel = panel_for()
    panel.settings["audio_guide_scale"].widget.value = 2.5
    panel.settings["seed"].widget.value = "7"
    assert panel.params == request_for(audio_guide_scale=2.5, seed=7)
    changed = {
        name for name, control in panel.settings.controls.items() if "thl-changed" in control._dom_classes
    }
    assert changed == {"audio_guide_scale", "seed"}
    panel.reset_button.click()
    assert panel.params == request_for()


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [("seed", "abc", "valid integer"), ("frame_size", "100x100", "multiples of 16"),
     ("motion_frame", 9, "must be smaller than chunk_frames")],
)  # fmt: skip
def test_a_bad_value_is_told_and_generates_nothing(panel_for, name, typed, told):
    panel = panel_for()
    before = panel.settings[name].value
    panel.settings[name].widget.value = typed
    assert told in panel.complaint.value
    assert panel.generate_button.disabled
    assert "thl-wrong" in panel.settings[name]._dom_classes
    panel.generate()
    assert panel.thread.busy is False and panel.runs == []
    panel.settings[name].value = before
    assert panel.complaint.value == "" and not panel.generate_button.disabled


def test_two_videos_are_a_history_of_two_that_can_be_compared(panel_for):
    panel = panel_for()
    panel.generate()
    result = panel.wait()
    assert result.frame_count == 25
    assert [clip["content"] for clip in panel.player.clips] == [result.video_path.read_bytes()]
    assert panel.status.value.startswith("Finished in") and panel.bar.value == 1.0
    panel.settings["seed"].widget.value = "43"
    panel.generate()
    second = panel.wait()
    assert folders(panel) == [second.run_dir, result.run_dir]
    assert [clip["key"] for clip in panel.player.clips] == [str(second.run_dir)]
    panel.gallery.choose(result.run_dir)
    assert [clip["key"] for clip in panel.player.clips] == [str(result.run_dir), str(second.run_dir)]
    assert "<tr><th>seed</th><td>42</td><td>43</td></tr>" in panel.table.value
    assert [row["seed"] for row in summary(panel.runs)] == [43, 42]
    panel.gallery.cards[result.run_dir, True].use.click()
    assert panel.params.seed == 42


def test_many_clicks_begin_one_video(panel_for):
    panel = panel_for(max_frames=9)
    for _ in range(5):
        panel.generate_button.click()
    assert panel.generate_button.disabled and not panel.stop_button.disabled
    panel.wait()
    assert len(panel.runs) == 1
    assert not panel.generate_button.disabled and panel.stop_button.disabled


def test_chunks_are_shown_with_their_sound_as_they_are_finished_and_stop_leaves_them(panel_for, tmp_path):
    panel = panel_for(diffusion_steps=10)
    panel.generate()
    wait_for(lambda: panel._parts_shown, panel)
    assert "under way" in panel.player.clips[0]["title"]
    seen = tmp_path / "seen.mp4"
    seen.write_bytes(panel.player.clips[0]["content"])
    facts = probe(seen)
    assert facts.codecs == ("h264", "aac") and facts.frame_count in (9, 13, 17, 21)
    panel.stop_button.click()
    assert panel.stop_button.disabled
    assert panel.wait() is None
    assert panel.status.value.startswith("Stopped")
    (run,) = panel.runs
    assert not run.finished and run.parts
    panel.gallery.cards[run.folder, False].go_on.click()
    result = panel.wait()
    assert result.run_dir == run.folder and result.frame_count == 25
    assert yaml.safe_load((run.folder / "run.json").read_text())["chunks_of_earlier_calls"] >= 1


def test_a_video_that_is_stopped_at_once_leaves_nothing(panel_for, monkeypatch):
    panel = panel_for()
    stopped_by_then = "talkinghead_lab.widgets.jobs.read_inputs"
    monkeypatch.setattr(stopped_by_then, lambda params: panel.thread.job.stop.wait(60))
    panel.generate()
    panel.stop()
    panel.wait()
    assert panel.status.value == "Stopped before anything was made." and panel.runs == []


def test_of_a_long_run_only_the_newest_chunks_are_shown(panel_for, monkeypatch, tmp_path):
    panel = panel_for(diffusion_steps=10)
    panel.generate()
    wait_for(lambda: panel._parts_shown >= 2, panel)
    panel.stop()
    panel.wait()
    (run,) = panel.runs
    monkeypatch.setattr("talkinghead_lab.widgets.history.LARGEST_PREVIEW", 0)
    seen = tmp_path / "seen.mp4"
    seen.write_bytes(growing_video(run.params, run.parts))
    assert probe(seen).frame_count == probe(run.parts[-1]).frame_count


def test_a_failure_is_told_in_words_and_the_next_video_is_made(panel_for):
    panel = panel_for()
    panel.settings["image_path"].widget.value = "/nowhere.png"
    panel.generate()
    with pytest.raises(TalkingHeadError, match="no such file"):
        panel.wait()
    assert "no such file" in panel.status.value and "nowhere.png" in panel.status.value
    assert panel.bar.bar_style == "danger" and panel.runs == []
    panel.settings["image_path"].widget.value = "sample:portrait"
    panel.settings["device"].widget.value = "cuda:99"
    panel.generate()
    with pytest.raises(TalkingHeadError, match="no such GPU"):
        panel.wait()
    panel.settings["device"].widget.value = "cpu"
    panel.generate()
    assert panel.wait().frame_count == 25


def test_what_nobody_foresaw_is_told_with_its_place(panel_for, monkeypatch):
    monkeypatch.setattr("talkinghead_lab.widgets.jobs.read_inputs", lambda params: 1 // 0)
    panel = panel_for()
    panel.generate()
    with pytest.raises(TalkingHeadError, match="ZeroDivisionError"):
        panel.wait()
    assert "<details>" in panel.status.value and "Traceback" in panel.status.value


def test_a_panel_that_is_opened_again_meets_the_video_under_way(panel_for):
    first = panel_for(diffusion_steps=10)
    first.generate()
    second = panel_for(diffusion_steps=10)
    assert second.thread is first.thread
    assert second.generate_button.disabled and not second.stop_button.disabled
    second.generate()
    wait_for(lambda: second.thread.job.progress is not None, second)
    second.stop_button.click()
    second.wait()
    assert len(second.runs) == 1 and second.status.value.startswith("Stopped")
    threads = [thread for thread in threading.enumerate() if isinstance(thread, GenerationThread)]
    assert len(threads) == 1


def test_a_new_kernel_finds_the_runs_again(panel_for, project):
    panel = panel_for(max_frames=9)
    panel.generate()
    result = panel.wait()
    broken = project / "outputs" / "broken"
    broken.mkdir()
    (broken / "request.yaml").write_text((result.run_dir / "request.yaml").read_text())
    (broken / "run.json").write_text('{"result": {}}')
    (project / "outputs" / "other").mkdir()
    again = panel_for()
    assert folders(again) == [result.run_dir]
    assert [clip["key"] for clip in again.player.clips] == [str(result.run_dir)]
    assert find_runs(project / "nowhere") == []


def test_in_a_notebook_the_panel_looks_after_the_thread_by_itself(panel_for):
    async def generate_and_sleep():
        panel = panel_for(max_frames=9)
        panel.generate_button.click()
        for _ in range(600):
            await asyncio.sleep(0.1)
            if panel.status.value.startswith("Finished"):
                return panel
        raise TimeoutError

    panel = asyncio.run(generate_and_sleep())
    assert len(panel.player.clips) == 1 and not panel.generate_button.disabled


def test_what_is_saved_is_the_same_request_and_nothing_is_overwritten(panel_for, project):
    panel = panel_for(seed=5)
    path = panel.save()
    assert path == project / "outputs" / "params" / "tuned.yaml"
    assert "outputs/params/tuned.yaml" in panel.saved.value
    assert GenerationParams.from_yaml(path) == panel.params
    assert set(yaml.safe_load(path.read_text())) == set(GenerationParams.model_fields)
    assert panel.file_name.value == "tuned-2"
    panel.file_name.value = "tuned"
    assert panel.save() is None
    assert "not overwritten" in panel.complaint.value
    panel.file_name.value = "../up"
    assert panel.save() is None
    assert not (project / "outputs" / "up.yaml").exists()


def test_the_shell_takes_what_is_saved(panel_for, project):
    panel = panel_for(max_frames=9)
    path = panel.save()
    assert main(["generate", str(path), "--run", str(project / "run")]) == 0
    assert GenerationParams.from_yaml(project / "run" / "request.yaml") == panel.params


def test_presets_are_the_files_that_hold_a_request(panel_for, project):
    panel = panel_for(seed=5)
    names = [name for name, _ in panel.preset.options]
    assert "embedded" in names and "infinitetalk-480" in names and "sweep-cfg" not in names
    panel.save()
    assert panel.preset.options[-1] == ("tuned", str(project / "outputs" / "params" / "tuned.yaml"))
    panel.preset.value = dict(panel.preset.options)["embedded-fast"]
    assert panel.params == GenerationParams.from_yaml(project / "params" / "embedded-fast.yaml")
    panel.preset.value = dict(panel.preset.options)["tuned"]
    assert panel.params.seed == 5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")]
)
def test_lengths_of_time_are_told_in_words(seconds, words):
    assert in_words(seconds) == words
