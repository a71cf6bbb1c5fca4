"""Settings come from the environment, and make of a call's fields the pipeline's request."""

import re
from pathlib import Path

import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.schemas import REQUEST_FIELDS, VideoRequest
from talkinghead_lab.service.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()
FOLDERS = {"CKPT_DIR": "/w/ckpt", "WAV2VEC_DIR": "/w/wav2vec", "INFINITETALK_DIR": "/w/infinitetalk"}
CALL = {"audio_path": "/a.wav", "image_path": "/i.png", "prompt": ""}


@pytest.fixture
def environment(monkeypatch):
    def make(**variables: str) -> Settings:
        for name in Settings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Settings.read()

    return make


def test_an_empty_environment_serves_the_small_model(environment):
    settings = environment()
    assert (settings.shared_dir, settings.output_dir) == (Path("/data/shared"), Path("/output"))
    assert (settings.port, settings.motion_frame, settings.token) == (8200, 9, None)
    for resolution in ("infinitetalk-480", "infinitetalk-720"):
        params = settings.params(**CALL, resolution=resolution)
        assert (params.checkpoint, params.frame_size) == ("embedded", "160x160")


@pytest.mark.parametrize(
    ("resolution", "size"), [("infinitetalk-480", (1024, 576)), ("infinitetalk-720", (1280, 720))]
)
def test_released_weights_get_the_promised_sizes(environment, resolution, size):
    params = environment(**FOLDERS).params(**CALL, resolution=resolution)
    assert params.forced_size == size
    assert params.checkpoint == "released"
    assert (params.ckpt_dir, params.infinitetalk_dir) == ("/w/ckpt", "/w/infinitetalk")


def test_the_default_resolution_gets_its_size_too(environment):
    assert environment(**FOLDERS).params(**CALL).forced_size == (1024, 576)


def test_a_call_s_own_fields_win_over_the_environment(environment):
    settings = environment(MOTION_FRAME="13")
    assert settings.params(**CALL).motion_frame == 13
    assert settings.params(**CALL, motion_frame=5).motion_frame == 5


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"QUEUE_LENGTH": "many"}, "QUEUE_LENGTH"),
        ({"PORT": "99999"}, "PORT"),
        ({"IDLE_SECONDS": "-1"}, "IDLE_SECONDS"),
        ({"IDLE_SECONDS": "nan"}, "IDLE_SECONDS"),
        ({"KEEP_GIB": "nan"}, "KEEP_GIB"),
        ({"MOTION_FRAME": "10"}, "motion_frame"),
        ({"FRAME_SIZE": "33x32"}, "frame_size"),
        ({"CKPT_DIR": "/w"}, "WAV2VEC_DIR"),
    ],
)
def test_what_cannot_be_is_told_at_the_start(environment, variables, told):
    with pytest.raises(InvalidRequest, match=told):
        environment(**variables)


def test_the_token_is_not_shown(environment):
    assert "geheim" not in repr(environment(TOKEN="geheim"))


def test_a_request_has_exactly_its_fields_and_defaults():
    assert tuple(VideoRequest.model_fields) == REQUEST_FIELDS
    request = VideoRequest(audio_path="a", image_path="i", prompt="p")
    assert list(request.model_dump().values()) == [
        "a",
        "i",
        "p",
        "infinitetalk-480",
        42,
        40,
        5.0,
        4.0,
        9,
        True,
    ]


def test_the_readme_lists_every_setting():
    rows = [
        f"| `{name.upper()}` | {'unset' if field.default is None else field.default} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    table = README.split("| variable | default | meaning |\n| --- | --- | --- |\n")[1].split("\n\n")[0]
    assert table.splitlines() == rows, "paste this into README.md:\n" + "\n".join(rows)


def test_the_readme_lists_every_call():
    told = re.search(r"\| call \|.*?\n\n", README, re.S)[0]
    for path in create_app(Settings()).openapi()["paths"]:
        assert re.sub(r"\{job_id\}", "{id}", path) in told, path
