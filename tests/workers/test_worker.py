"""Jobs: how the results of a cluster are stored."""

import pytest

from talkinghead_lab.errors import FolderLocked
from talkinghead_lab.foundation.files import locked
from talkinghead_lab.workers.worker import Job


def test_a_run_of_a_cluster_replaces_an_interrupted_one_that_nobody_writes(request_for, tmp_path):
    job = Job(request_for(), tmp_path / "run")
    (job.run_dir / "chunks").mkdir(parents=True)
    (job.run_dir / "chunks" / "00000.mp4").write_bytes(b"of an interrupted call")
    files = {"run.json": b"{}", "video.mp4": b"video"}
    with locked(job.run_dir), pytest.raises(FolderLocked):
        job.collect(files)
    assert (job.run_dir / "chunks" / "00000.mp4").exists()
    job.collect(files)
    assert {path.name: path.read_bytes() for path in job.run_dir.iterdir()} == files
