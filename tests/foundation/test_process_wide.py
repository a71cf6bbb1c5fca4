"""Overlapping changes of process-wide state are applied once and undone once."""

from contextlib import contextmanager

import pytest

from talkinghead_lab.foundation.process_wide import process_wide


@pytest.fixture
def events():
    return []


@pytest.fixture
def change(events):
    @process_wide
    @contextmanager
    def change():
        events.append("apply")
        try:
            yield len(events)
        finally:
            events.append("undo")

    return change


def test_the_first_use_applies_the_change_and_the_last_one_undoes_it(change, events):
    first, second = change(), change()
    assert first.__enter__() == second.__enter__() == 1
    first.__exit__(None, None, None)
    assert events == ["apply"]
    second.__exit__(None, None, None)
    assert events == ["apply", "undo"]
    with change() as value:
        assert value == 3


def test_an_error_undoes_the_change(change, events):
    with pytest.raises(KeyError), change():
        raise KeyError
    assert events == ["apply", "undo"]


def test_a_change_that_cannot_be_applied_counts_no_use():
    failures = [OSError("refused"), None]

    @process_wide
    @contextmanager
    def change():
        if failure := failures.pop(0):
            raise failure
        yield "applied"

    with pytest.raises(OSError, match="refused"), change():
        pytest.fail("the block must not run")
    with change() as value:
        assert value == "applied"
