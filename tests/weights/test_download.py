"""Downloading takes only the files that the loaders read."""

import huggingface_hub

from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.download import fetch_released


def test_each_repository_is_downloaded_and_named_by_its_environment_variable(tmp_path, monkeypatch):
    patterns = {}

    def snapshot_download(repository, local_dir, allow_patterns):
        patterns[repository] = allow_patterns
        local_dir.mkdir()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folders = fetch_released(tmp_path)
    assert list(folders) == ["CKPT_DIR", "WAV2VEC_DIR", "INFINITETALK_DIR"]
    assert all(folder.parent == tmp_path and folder.is_dir() for folder in folders.values())
    assert set(patterns) == set(checkpoints.RELEASED_REPOSITORIES.values())
    assert all(patterns.values()), "a repository without patterns would be downloaded completely"
