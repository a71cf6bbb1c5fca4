"""Files that users supply: known by their digest, refused otherwise."""

import pytest

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.digests import sha256_of_file
from talkinghead_lab.measures.given_weights import GIVEN_WEIGHTS, GivenWeights, given_digests
from tests.measures.given import give


def test_a_file_is_known_by_its_digest(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"right")
    weights = GivenWeights("SOME_MODEL", "weights.bin of somebody", (sha256_of_file(path),))
    monkeypatch.delenv("SOME_MODEL", raising=False)
    assert weights.digest() is None
    with pytest.raises(CheckpointError, match=r"SOME_MODEL is not set.*weights.bin of somebody"):
        weights.path()
    monkeypatch.setenv("SOME_MODEL", str(path))
    assert weights.path() == path
    assert weights.checked_bytes() == b"right"
    assert weights.digest() == sha256_of_file(path)
    path.write_bytes(b"wrong")
    for read in (weights.path, weights.checked_bytes, weights.digest):
        with pytest.raises(CheckpointError, match=r"SOME_MODEL names other weights.*weights.bin of somebody"):
            read()


def test_every_known_digest_is_a_sha256_and_every_variable_has_one_file():
    digests = [digest for weights in GIVEN_WEIGHTS for digest in weights.digests]
    assert {len(bytes.fromhex(digest)) for digest in digests} == {32}
    assert len(set(digests)) == len(digests)
    variables = [weights.variable for weights in GIVEN_WEIGHTS]
    assert len(set(variables)) == len(variables)


def test_the_given_files_are_listed(tmp_path, monkeypatch):
    for weights in GIVEN_WEIGHTS:
        monkeypatch.delenv(weights.variable, raising=False)
    assert given_digests() == {}
    path = tmp_path / "file"
    path.write_bytes(b"network")
    give(monkeypatch, GIVEN_WEIGHTS[-1], path)
    assert given_digests() == {GIVEN_WEIGHTS[-1].variable: sha256_of_file(path)}
