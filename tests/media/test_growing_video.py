"""A growing video can be played at any moment, and has the pictures and the sound of the finished one."""

from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from talkinghead_lab.errors import OutputError
from talkinghead_lab.media.audio import SOUNDTRACK_RATE, read_soundtrack
from talkinghead_lab.media.growing_video import BLOCK_BYTES, GrowingVideo, plain_copy
from talkinghead_lab.media.video import join_videos, probe, read_frames, write_video

SIZE = 48, 64


def blocks(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    still, change = rng.integers(0, 200, (1, *SIZE, 3)), rng.integers(0, 30, (count, *SIZE, 3))
    return list((still + change).astype(np.uint8)[:, None])


def tone(seconds: float) -> np.ndarray:
    times = np.arange(round(seconds * SOUNDTRACK_RATE)) / SOUNDTRACK_RATE
    return (0.3 * np.sin(2 * np.pi * 440 * times))[None].astype(np.float32)


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize("counts", [(81, 20, 3), (1, 2, 3, 4), (1,), (9, 4, 4)])
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_it_has_the_frames_and_the_sound_of_the_joined_chunks(tmp_path, counts, earlier):
    """Also where some of the chunks were finished by an earlier call."""
    parts, sound = [tmp_path / f"{number}.mp4" for number in range(len(counts))], tone(sum(counts) / 25)
    with GrowingVideo(tmp_path / "whole.mp4", sound, sum(counts)) as growing:
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            write_video(part, blocks(count, number), None, count, {}, growing.add)
            growing.end_chunk()
        growing.finish()
    with GrowingVideo(tmp_path / "resumed.mp4", sound, sum(counts)) as growing:
        for part in parts[:earlier]:
            growing.append(part)
        for number, count in list(enumerate(counts))[earlier:]:
            write_video(tmp_path / f"again-{number}.mp4", blocks(count, number), None, count, {}, growing.add)
            growing.end_chunk()
        growing.finish()
    join_videos(tmp_path / "joined.mp4", parts, sound, {})
    for name in ("whole", "resumed"):
        path = tmp_path / f"{name}.mp4"
        assert np.array_equal(decoded(path), decoded(tmp_path / "joined.mp4"))
        assert np.array_equal(read_soundtrack(path), read_soundtrack(tmp_path / "joined.mp4"))
        assert times_of(path) == pytest.approx(np.arange(sum(counts)) / 25)


def test_it_can_be_played_at_any_moment(tmp_path):
    """Every state on disk is a video: the first after some frames, that of a finished chunk complete."""
    path, sizes, counts = tmp_path / "growing.mp4", [], []

    def watched(count: int, seed: int):
        for block in blocks(count, seed):
            yield block
            if path.stat().st_size > sum(sizes[-1:]):
                assert sizes or path.stat().st_size % BLOCK_BYTES == 0
                sizes.append(path.stat().st_size)
                counts.append(len(decoded(path)))

    with GrowingVideo(path, tone(5), 125) as growing:
        assert growing.first_written is None
        write_video(tmp_path / "0.mp4", watched(81, 0), None, 81, {}, growing.add)
        assert growing.first_written is not None
        growing.end_chunk()
        assert len(decoded(path)) == 81
        assert path.stat().st_size % BLOCK_BYTES == 0
        write_video(tmp_path / "1.mp4", watched(40, 1), None, 40, {}, growing.add)
        growing.end_chunk()
        assert len(decoded(path)) == 121
        heard = read_soundtrack(path).shape[1] / SOUNDTRACK_RATE
    assert counts == [10, 20, 30, 40, 50, 60, 70, 81, 91, 101]
    assert heard == pytest.approx(121 / 25, abs=0.05)


def test_its_copy_has_an_index_and_of_a_long_video_the_newest_part(tmp_path):
    path, copy, sound = tmp_path / "growing.mp4", tmp_path / "copy.mp4", tone(161 / 25)
    with GrowingVideo(path, sound, 161) as growing:
        for number, count in enumerate((121, 40)):
            write_video(tmp_path / f"{number}.mp4", blocks(count, number), None, count, {}, growing.add)
            growing.end_chunk()
        copy.write_bytes(plain_copy(path, 10**9))
        assert (probe(copy).frame_count, probe(copy).duration_seconds) == (161, 161 / 25)
        assert np.array_equal(decoded(copy), decoded(path))
        heard = read_soundtrack(path)
        assert np.array_equal(read_soundtrack(copy), heard)
        # Key frames: the first, one after 100 frames, and the first of the second chunk.
        for largest, frames in ((copy.stat().st_size * 6 // 10, 61), (0, 40)):
            copy.write_bytes(plain_copy(path, largest))
            assert np.array_equal(decoded(copy), decoded(path)[-frames:])
            newest = read_soundtrack(copy)[0]
            assert len(newest) == pytest.approx(heard.shape[1] - (161 - frames) * 1920, abs=1024)
            assert np.abs(np.fft.rfft(newest[4800:28800])).argmax() == 220, "440 Hz, half a second"


def test_readers_of_an_older_file_are_not_disturbed(tmp_path):
    path = tmp_path / "growing.mp4"
    path.write_bytes(b"older")
    with path.open("rb") as reader, GrowingVideo(path, tone(1), 25):
        assert path.read_bytes() == b""
        assert reader.read() == b"older"


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"growing video cannot be written.*none"):
        GrowingVideo(tmp_path / "none" / "growing.mp4", tone(1), 25)


def test_a_video_leaves_no_memory_behind(tmp_path):
    """A muxer that was started and never closed kept 90 KiB of the service for each job."""
    write_video(tmp_path / "part.mp4", blocks(9, seed=0), None, 9, {})

    def make() -> None:
        with GrowingVideo(tmp_path / "growing.mp4", tone(0.36), 9) as growing:
            growing.append(tmp_path / "part.mp4")
            growing.finish()

    resident = []
    for number in range(320):
        make()
        if number in (20, 319):
            resident.append(psutil.Process().memory_info().rss / 2**20)
    assert resident[1] - resident[0] < 7
