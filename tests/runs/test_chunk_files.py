"""Only whole chunks of the same request, in their place, count as finished; all others are made again."""

import json
import resource
import shutil
import struct
from pathlib import Path

import pytest

from talkinghead_lab import generate
from talkinghead_lab.errors import OutputError, Stopped
from talkinghead_lab.media import video
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.runs.folder import RunFolder
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.runs.result import GenerationResult
from talkinghead_lab.sampling.chunks import plan_chunks

FINISHED = 4  # chunks of 5


@pytest.fixture(scope="module")
def pipeline(request_for) -> Pipeline:
    return Pipeline.load(request_for())


def made(params, run_dir, pipeline, on_progress=None) -> GenerationResult:
    return generate(params, run_dir, pipeline=pipeline, on_progress=on_progress, show_progress=False)


def digests(result: GenerationResult) -> list[tuple[str, str]]:
    record = json.loads((result.run_dir / "run.json").read_text())
    return [(chunk["latent_sha256"], chunk["frames_sha256"]) for chunk in record["chunks"]]


@pytest.fixture(scope="module")
def undisturbed(request_for, pipeline, tmp_path_factory) -> GenerationResult:
    return made(request_for(), tmp_path_factory.mktemp("undisturbed") / "run", pipeline)


@pytest.fixture(scope="module")
def stopped(request_for, pipeline, tmp_path_factory) -> Path:
    """The folder of a run with four of its five chunks."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        made(request_for(), folder, pipeline, lambda progress: progress.chunk <= FINISHED)
    return folder


@pytest.fixture
def resumed(request_for, pipeline, undisturbed):
    """Finish a run: its result, and the number of the first chunk that was made."""

    def finish(folder: Path) -> int:
        seen = []
        result = made(request_for(), folder, pipeline, seen.append)
        assert result.video_path.read_bytes() == undisturbed.video_path.read_bytes()
        assert digests(result) == digests(undisturbed)
        return seen[0].chunk - 1 if seen else len(digests(result))

    return finish


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def with_header(path: Path, change) -> None:
    """Rewrite the header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def change_shape(header: dict) -> None:
    first, second, *sides = header["last_frames"]["shape"]
    header["last_frames"]["shape"] = [second, first, *sides]


DAMAGES = {
    "video cut": lambda chunks: (chunks / "00002.mp4").write_bytes(
        (chunks / "00002.mp4").read_bytes()[:-20]
    ),
    "video flipped": lambda chunks: flip(chunks / "00002.mp4", -30),
    "video of another chunk": lambda chunks: shutil.copy(chunks / "00001.mp4", chunks / "00002.mp4"),
    "video emptied": lambda chunks: (chunks / "00002.mp4").write_bytes(b""),
    "video gone": lambda chunks: (chunks / "00002.mp4").unlink(),
    "frames flipped": lambda chunks: flip(chunks / "00002.safetensors", -1000),
    "frames cut": lambda chunks: (chunks / "00002.safetensors").write_bytes(
        (chunks / "00002.safetensors").read_bytes()[:-20]
    ),
    "frames emptied": lambda chunks: (chunks / "00002.safetensors").write_bytes(b""),
    "frames gone": lambda chunks: (chunks / "00002.safetensors").unlink(),
    "frames of text": lambda chunks: (chunks / "00002.safetensors").write_text("not tensors at all"),
    "no facts": lambda chunks: with_header(
        chunks / "00002.safetensors", lambda header: header.pop("__metadata__")
    ),
    "a digest changed": lambda chunks: with_header(
        chunks / "00002.safetensors", lambda header: header["__metadata__"].update(latent_sha256="0" * 64)
    ),
    "no seconds": lambda chunks: with_header(
        chunks / "00002.safetensors", lambda header: header["__metadata__"].update(seconds="")
    ),
    "another shape": lambda chunks: with_header(chunks / "00002.safetensors", change_shape),
    "no frames": lambda chunks: with_header(
        chunks / "00002.safetensors", lambda header: header.update(other=header.pop("last_frames"))
    ),
    "both files of another chunk": lambda chunks: [
        shutil.copy(chunks / f"00001{suffix}", chunks / f"00002{suffix}")
        for suffix in (".mp4", ".safetensors")
    ],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_and_all_later_ones_do_not_count(stopped, request_for, tmp_path, damage):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    DAMAGES[damage](folder / "chunks")
    params = request_for()
    chunks = plan_chunks(25, params.chunk_frames, params.motion_frame)
    with RunFolder.open(params, folder, (32, 32), InputDigests.of(params).digest) as run:
        assert run.chunks.find_finished(chunks) == 2
    left = sorted(path.name for path in (folder / "chunks").glob("0*"))
    assert left == ["00000.mp4", "00000.safetensors", "00001.mp4", "00001.safetensors"]


@pytest.mark.parametrize("damage", ["video of another chunk", "frames flipped", "frames emptied"])
def test_a_run_with_a_damaged_chunk_ends_with_the_bytes_of_an_undisturbed_one(
    stopped, resumed, tmp_path, damage
):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    DAMAGES[damage](folder / "chunks")
    assert resumed(folder) == 2


def test_a_copy_of_a_run_goes_on_elsewhere(stopped, resumed, tmp_path):
    assert resumed(shutil.copytree(stopped, tmp_path / "elsewhere")) == FINISHED


def test_a_chunk_of_another_request_does_not_count(stopped, resumed, request_for, pipeline, tmp_path):
    folder, other = shutil.copytree(stopped, tmp_path / "run"), tmp_path / "other"
    with pytest.raises(Stopped):
        made(request_for(seed=7), other, pipeline, lambda progress: progress.chunk < 2)
    shutil.copytree(other / "chunks", folder / "chunks", dirs_exist_ok=True)
    assert resumed(folder) == 0


def test_files_of_others_among_the_chunks_stay(stopped, resumed, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "chunks" / "notes.txt").write_text("mine")
    (folder / "chunks" / "0.mp4").write_text("mine")
    assert resumed(folder) == FINISHED
    assert sorted(path.name for path in (folder / "chunks").iterdir()) == ["0.mp4", "notes.txt"]


def test_a_folder_in_place_of_a_chunk_is_named(stopped, request_for, pipeline, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    (folder / "chunks" / "00002.mp4").unlink()
    (folder / "chunks" / "00002.mp4").mkdir()
    with pytest.raises(OutputError, match=r"cannot be removed.*00002\.mp4"):
        made(request_for(), folder, pipeline)


def test_a_chunk_changed_during_the_run_ends_it_and_is_made_again(
    stopped, resumed, request_for, pipeline, tmp_path
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(OutputError, match="chunk 2 was changed"):
        made(request_for(), folder, pipeline, lambda progress: DAMAGES["video flipped"](folder / "chunks"))
    assert resumed(folder) == 2


def test_a_video_of_another_length_is_not_recorded(
    stopped, resumed, request_for, pipeline, tmp_path, monkeypatch
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    join, short = video.join_videos, r"21 frames and 0\.84 s of sound; allowed: 25 frames, 1\.00 s"
    with monkeypatch.context() as patch:
        patch.setattr(video, "join_videos", lambda path, parts, *rest: join(path, parts[:-1], *rest))
        with pytest.raises(OutputError, match=short):
            made(request_for(), folder, pipeline)
    assert not list(folder.glob("*.mp4"))
    assert resumed(folder) == FINISHED + 1


@pytest.mark.parametrize(
    ("owner", "name"), [(video, "join_videos"), (video, "contact_sheet"), (RunFolder, "write_record")]
)
def test_a_disk_that_fills_up_at_the_end_leaves_a_run_that_resumes(
    stopped, resumed, request_for, pipeline, tmp_path, monkeypatch, owner, name
):
    folder, limits = shutil.copytree(stopped, tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = getattr(owner, name)

    def filled_before(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, filled_before)
        try:
            with pytest.raises(OutputError, match="no space left"):
                made(request_for(), folder, pipeline)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.rglob(".*"))
    assert resumed(folder) == FINISHED + 1
