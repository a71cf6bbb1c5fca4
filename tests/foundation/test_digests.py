"""Cached digests follow the files."""

import os
from hashlib import sha256

from talkinghead_lab.foundation import digests


def test_a_digest_is_cached_until_the_file_changes(tmp_path, monkeypatch):
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"first")
    read = []
    plain = digests.sha256_of_file
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: read.append(path) or plain(path))
    for _ in range(2):
        assert digests.known_sha256(file, cache) == sha256(b"first").hexdigest()
    assert len(read) == 1
    before = file.stat()
    file.write_bytes(b"other")  # same size, and below the same mtime
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.known_sha256(file, cache) == sha256(b"other").hexdigest()


def test_a_damaged_or_unwritable_cache_does_not_change_the_digest(tmp_path):
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"first")
    digests.known_sha256(file, cache)
    (entry,) = cache.iterdir()
    entry.write_text("{")
    assert digests.known_sha256(file, cache) == sha256(b"first").hexdigest()
    (tmp_path / "taken").write_text("not a folder")
    assert digests.known_sha256(file, tmp_path / "taken" / "cache") == sha256(b"first").hexdigest()


def test_a_digest_that_is_known_by_other_means_is_not_taken_again(tmp_path):
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"first")
    digests.remember_sha256(file, "stated", cache)
    assert digests.known_sha256(file, cache) == "stated"
    file.write_bytes(b"second")
    assert digests.known_sha256(file, cache) == sha256(b"second").hexdigest()
