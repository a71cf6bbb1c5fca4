"""Files are downloaded at once, until one fails."""

import pytest

from talkinghead_lab.errors import DownloadError, Stopped
from talkinghead_lab.weights.download.hub import RemoteFile
from talkinghead_lab.weights.download.transfers import AT_ONCE, Progress, transfer

FILES = [RemoteFile("owner/name", "0" * 40, str(number), 100, None, "1" * 40) for number in range(20)]


def test_every_file_is_taken_once():
    taken = []
    transfer(FILES, taken.append, Progress(2_000, 0))
    assert sorted(taken, key=FILES.index) == FILES


def test_after_an_error_the_others_stop_and_none_is_begun():
    begun, stopped = [], []
    progress = Progress(2_000, 0)

    def fetch_one(file: RemoteFile) -> None:
        begun.append(file)
        if file is FILES[0]:
            raise DownloadError("lost")
        try:
            while True:
                progress.add(1)
        except Stopped:
            stopped.append(file)
            raise

    with pytest.raises(DownloadError, match="lost"):
        transfer(FILES, fetch_one, progress)
    assert begun[0] == FILES[0] and len(begun) <= AT_ONCE
    assert set(stopped) == set(begun[1:])
