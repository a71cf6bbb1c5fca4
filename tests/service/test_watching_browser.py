"""A browser plays the video of a job in a plain element while the job runs."""

import shutil
import time

import pytest

from tests.browsers import chromium

pytestmark = pytest.mark.slow
PLAY = """url => {
    const video = document.createElement('video');
    Object.assign(video, {src: url, muted: true});
    document.body.append(video);
    video.play();
}"""
STATE = """() => {
    const video = document.querySelector('video');
    return {time: video.currentTime, width: video.videoWidth, error: video.error?.message,
            shown: video.getVideoPlaybackQuality().totalVideoFrames, ended: video.ended};
}"""


def test_a_browser_plays_it_while_it_is_made(launch, shared, recording):
    shutil.copy(recording(2.0), shared / "watched.wav")
    server = launch(gated=True, CHUNK_FRAMES="21")
    job = server.submit(audio_path="watched.wav", diffusion_steps=3, prompt="hold at 7").json()["id"]
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{server.url}/api/health")
        page.evaluate(PLAY, f"/api/jobs/{job}/video")
        until = time.monotonic() + 60
        while page.evaluate(STATE)["time"] < 0.4 and time.monotonic() < until:
            time.sleep(0.05)
        seen, state = page.evaluate(STATE), server.job(job)["state"]
        assert seen["error"] is None
        assert (seen["width"], state) == (32, "running")
        assert seen["time"] >= 0.4
        assert seen["shown"] >= 5
        server.open_gate()
        server.wait_for(job, "finished")
        page.wait_for_function("() => document.querySelector('video').ended")
        assert page.evaluate(STATE)["time"] == pytest.approx(2.0, abs=0.05)
