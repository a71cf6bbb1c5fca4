"""Settings are read from the environment and complete the fields of an HTTP request."""

import re
from pathlib import Path

import pytest

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.schemas import REQUEST_FIELDS, VideoRequest
from talkinghead_lab.service.settings import ServiceSettings
from tests.doc_tables import settings_table, table_of

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
FOLDERS = {"CKPT_DIR": "/w/ckpt", "WAV2VEC_DIR": "/w/wav2vec", "INFINITETALK_DIR": "/w/infinitetalk"}
CALL = {"audio_path": "/a.wav", "image_path": "/i.png", "prompt": ""}


@pytest.fixture
def environment(monkeypatch):
    def make(**variables: str) -> ServiceSettings:
        for name in ServiceSettings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return ServiceSettings.read()

    return make


def test_an_empty_environment_selects_the_bundled_model(environment):
    settings = environment()
    assert (settings.shared_dir, settings.output_dir) == (Path("/data/shared"), Path("/output"))
    assert (settings.port, settings.motion_frame, settings.token) == (8200, 9, None)
    for resolution in ("infinitetalk-480", "infinitetalk-720"):
        params = settings.params(**CALL, resolution=resolution)
        assert (params.checkpoint, params.frame_size) == ("embedded", "160x160")
        assert (params.diffusion_steps, params.text_guide_scale, params.seam_frames) == (4, 2.0, 8)


@pytest.mark.parametrize(
    ("resolution", "size"), [("infinitetalk-480", (1024, 576)), ("infinitetalk-720", (1280, 720))]
)
def test_released_weights_get_their_frame_size(environment, resolution, size):
    params = environment(**FOLDERS).params(**CALL, resolution=resolution)
    assert params.forced_size == size
    assert params.checkpoint == "released"
    assert (params.ckpt_dir, params.infinitetalk_dir) == ("/w/ckpt", "/w/infinitetalk")


def test_the_default_resolution_gets_its_frame_size(environment):
    assert environment(**FOLDERS).params(**CALL).forced_size == (1024, 576)


def test_what_a_call_leaves_out_follows_the_weights(environment):
    bundled, released = environment().params(**CALL), environment(**FOLDERS).params(**CALL)
    assert (bundled.diffusion_steps, bundled.shift, bundled.seam_frames) == (4, 3.0, 8)
    assert (released.diffusion_steps, released.shift, released.seam_frames) == (40, 7.0, 0)
    properties = VideoRequest.model_json_schema()["properties"]
    assert "bundled model: 4" in properties["diffusion_steps"]["description"]


def test_request_fields_take_precedence_over_the_environment(environment):
    settings = environment(MOTION_FRAME="13")
    assert settings.params(**CALL).motion_frame == 13
    assert settings.params(**CALL, motion_frame=5).motion_frame == 5


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"QUEUE_LENGTH": "many"}, "QUEUE_LENGTH"),
        ({"PORT": "99999"}, "PORT"),
        ({"IDLE_SECONDS": "-1"}, "IDLE_SECONDS"),
        ({"IDLE_SECONDS": "nan"}, "IDLE_SECONDS"),
        ({"KEEP_GIB": "nan"}, "KEEP_GIB"),
        ({"LARGEST_MIB": "inf"}, "LARGEST_MIB"),
        ({"MEDIA_MIB": "1e400"}, "MEDIA_MIB"),
        ({"IDLE_SECONDS": "1e10"}, "IDLE_SECONDS"),
        ({"CALLBACK_HOSTS": "example.org", "CALLBACK_SECRET": " "}, "CALLBACK_SECRET"),
        ({"MOTION_FRAME": "10"}, "motion_frame"),
        ({"FRAME_SIZE": "33x32"}, "frame_size"),
        ({"CKPT_DIR": "/w"}, "WAV2VEC_DIR"),
    ],
)
def test_invalid_settings_are_reported_at_startup(environment, variables, named):
    with pytest.raises(InvalidRequest, match=named):
        environment(**variables)


def test_the_token_is_not_in_the_repr(environment):
    assert "a secret" not in repr(environment(TOKEN="a secret"))


@pytest.mark.parametrize("token", [" s3cret ", "s3cret\n", "\ts3cret"])
def test_white_space_around_the_token_is_ignored(environment, token):
    assert environment(TOKEN=token).token.get_secret_value() == "s3cret"


def test_white_space_around_an_address_is_ignored(environment):
    assert environment(HOST=" 127.0.0.1 ", PORT=" 80 ").host == "127.0.0.1"


@pytest.mark.parametrize("token", ["  ", "\n", "geheim\u00e4", "s3\ncret", "s3\x00cret"])
def test_a_token_that_clients_cannot_send_is_refused_without_repeating_it(token):
    with pytest.raises(InvalidRequest, match="TOKEN") as refused:
        ServiceSettings.read(token=token)
    assert "s3" not in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_allowed_hosts(environment):
    assert environment().hosts == ("127.0.0.1",)
    settings = environment(
        HOST="192.0.2.1", TOKEN="t", ALLOWED_HOSTS="Video.example.com, *.example.org,,[2001:db8::1]"
    )
    assert settings.hosts == ("192.0.2.1", "video.example.com", "*.example.org", "[2001:db8::1]")
    assert environment(HOST="0.0.0.0", TOKEN="t", ALLOWED_HOSTS="*").hosts == ("*",)
    assert environment(HOST="::1").hosts == ("[::1]",)
    for wrong in ("https://example.com", "example.com:8200", "exa*mple.com", "a b", "x/y"):
        with pytest.raises(InvalidRequest, match="ALLOWED_HOSTS"):
            environment(ALLOWED_HOSTS=wrong)


def test_the_request_has_exactly_these_fields_and_defaults():
    assert tuple(VideoRequest.model_fields) == REQUEST_FIELDS
    request = VideoRequest(audio_path="a", image_path="i", prompt="p")
    assert list(request.model_dump().values()) == [
        "a", "i", "p", "infinitetalk-480", 42, 40, 5.0, 4.0, 9, True,
    ]  # fmt: skip


def test_the_page_lists_every_setting():
    assert table_of("settings") == settings_table(), "run: python -m tests.doc_tables"


def test_the_page_lists_every_endpoint():
    listed = re.search(r"\| call \|.*?\n\n", PAGE, re.S)[0]
    for path in create_app(ServiceSettings()).openapi()["paths"]:
        assert re.sub(r"\{job_id\}", "{id}", path) in listed, path


def test_a_call_may_ask_for_a_random_seed():
    call = VideoRequest(**CALL, seed="random")
    assert ServiceSettings().params(**call.model_dump(exclude_unset=True)).seed == "random"
