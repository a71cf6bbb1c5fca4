"""Requests drawn from the service's own OpenAPI description, and from what it rules out."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from talkinghead_lab.service.app import create_app
from talkinghead_lab.service.settings import Settings

# A request can fit the description and name no file, and no schema can rule out a motion of 4n frames.
checks.load_all_checks()
LEFT_OUT = [checks.CHECKS.get_one("positive_data_acceptance")]
PATHS = create_app(Settings(token="any")).openapi()["paths"]
CASES = [
    (mode, method, path)
    for path, methods in PATHS.items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode.is_positive or "parameters" in operation  # without any, nothing can be wrong
]
TOKEN = {"Authorization": "Bearer a secret"}


@pytest.fixture(scope="module")
def description(narrow_server):
    return schemathesis.openapi.from_url(f"{narrow_server.url}/openapi.json", headers=TOKEN)


@pytest.mark.parametrize(("mode", "method", "path"), CASES, ids=str)
def test_answers_are_as_described(description, narrow_server, mode, method, path):
    operation = description[path][method]

    @settings(
        max_examples=40, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case):
        case.call_and_validate(headers=TOKEN, excluded_checks=LEFT_OUT)

    call()
    assert narrow_server.health()["status"] == "healthy"
