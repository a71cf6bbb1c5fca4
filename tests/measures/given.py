"""Weights with random values in place of the published ones."""

from pathlib import Path

import pytest

from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.measures.given_weights import GivenWeights


def give(monkeypatch: pytest.MonkeyPatch, weights: GivenWeights, path: Path) -> None:
    """Name a file by its variable, and let its digest pass for a published one."""
    monkeypatch.setenv(weights.variable, str(path))
    monkeypatch.setitem(vars(weights), "digests", (sha256_of_file(path),))
