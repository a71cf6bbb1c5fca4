"""The finished chunks of a run on disk.

A chunk is two files: its new frames as a silent video, and the overlap frames of the next chunk, with the
chunk's facts in their metadata. The facts hold a digest of everything else, so that a chunk that was damaged,
exchanged or copied from elsewhere does not count as finished.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.files import atomic_path, remove_file
from talkinghead_lab.measures.frames import LumaChanges
from talkinghead_lab.media import video
from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.media.pixels import to_uint8
from talkinghead_lab.pipeline.chunk_generator import GeneratedChunk
from talkinghead_lab.sampling.chunks import Chunk

Facts = Mapping[str, str]
FRAMES = "last_frames"  # tensor [3, motion_frame, H, W] in [−1, 1]
FACTS_DIGEST = "facts_sha256"
FP16_OVERFLOWED = "fp16_overflowed"
FORWARD_PASSES, SKIPPED_PASSES = "forward_passes", "skipped_passes"
LUMA_CHANGES = "luma_changes"  # JSON list, one for each new frame but the first of the video
RECORDED = ("frames_sha256", "latent_sha256", "decode_type")


class Abandoned(Exception):
    """The generation of a chunk ended before all its frames were there."""


@dataclass
class ArrivingChunk:
    """A chunk that is saved while it is generated.

    Args:
        chunk: its place in the video.
        pieces: its new frames, [3, f, H, W]; None after the last.
        generated: the complete chunk, and the seconds that it took.
    """

    chunk: Chunk
    pieces: "SimpleQueue[Tensor | None]" = field(default_factory=SimpleQueue)
    generated: "Future[tuple[GeneratedChunk, float]]" = field(default_factory=Future)

    def add(self, frames: Tensor) -> None:
        """Add the next new frames."""
        self.pieces.put(frames)

    def finish(self, generated: GeneratedChunk, seconds: float) -> None:
        """Tell that all frames were added."""
        self.generated.set_result((generated, seconds))
        self.pieces.put(None)

    def abandon(self) -> None:
        """Tell that the rest will not come."""
        self.generated.set_exception(Abandoned())
        self.pieces.put(None)

    def frames(self) -> Iterator[video.Frames]:
        """The new frames as they arrive.

        Raises:
            Abandoned: the rest will not come.
        """
        while (piece := self.pieces.get()) is not None:
            yield to_uint8(piece)
        self.generated.result()


@dataclass
class ChunkFiles:
    """Saves chunks, and finds those that an earlier call finished.

    Args:
        folder: where the files are; it exists.
        made_from: gives the digest of the request, the weights and the media. It is called only when a chunk
            is saved or checked, because it may have to wait for that digest.
        overlap: frames shared with the next chunk.
    """

    folder: Path
    made_from: Callable[[], str]
    overlap: int
    _facts: list[Facts] = field(default_factory=list, init=False)  # of finished chunks, in order
    _last_frame: video.Frames | None = field(default=None, init=False)  # of the last finished chunk

    def find_finished(self, chunks: Sequence[Chunk]) -> int:
        """Count the chunks, from the first on, that are whole and made from these inputs.

        Files of later chunks are removed: those would have to start from frames that are generated again.

        Raises:
            OutputError: a file cannot be removed.
        """
        self._facts, self._last_frame = [], None
        for chunk in chunks:
            facts = self._checked(chunk)
            if facts is None:
                break
            self._facts.append(facts)
        for chunk in chunks[len(self._facts) :]:
            self._remove(chunk)
        return len(self._facts)

    def save(self, arriving: "ArrivingChunk", growing: GrowingVideo) -> None:
        """Save the next chunk while its frames arrive.

        Args:
            arriving: the chunk; this waits for its frames, and until it is complete.
            growing: the video that can be played meanwhile.

        Raises:
            OutputError: no space is left; earlier chunks stay.
            Abandoned: its generation ended early; nothing is left of it.
        """
        chunk, frames_digest, changes = arriving.chunk, hashlib.sha256(), LumaChanges(self._last_frame)
        self._remove(chunk)
        frames = _examined(arriving.frames(), frames_digest, changes)
        video.write_video(self.silent_video(chunk), frames, None, chunk.new, {}, growing.add)
        growing.end_chunk()
        generated, seconds = arriving.generated.result()
        delivered = generated.frames[:, : chunk.repeated + chunk.new]
        last_frames = delivered[:, -self.overlap :].contiguous()
        facts = {
            "frames_sha256": frames_digest.hexdigest(),
            "latent_sha256": hashlib.sha256(generated.latent.numpy().data).hexdigest(),
            "video_sha256": digests.sha256_of_file(self.silent_video(chunk)),
            "last_frames_sha256": _digest(last_frames),
            "seconds": f"{seconds:.3f}",
            "decode_type": str(generated.decode_type).removeprefix("torch."),
            FORWARD_PASSES: str(generated.passes.computed),
            SKIPPED_PASSES: str(generated.passes.skipped),
            FP16_OVERFLOWED: str(generated.fp16_overflowed),
            LUMA_CHANGES: json.dumps([round(change, 4) for change in changes.values]),
            **self._place(chunk),
        }
        content = save({FRAMES: last_frames}, facts | {FACTS_DIGEST: digests.combined([facts])})
        with atomic_path(self._facts_file(chunk.index)) as temporary:
            temporary.write_bytes(content)
        self._facts.append(facts)
        self._last_frame = _last(last_frames)

    def last_frames(self, chunk: Chunk) -> Tensor | None:
        """Read the overlap frames that the previous chunk saved, [3, motion_frame, H, W].

        Raises:
            OutputError: they were damaged since they were checked.
        """
        if not chunk.repeated or not chunk.index:  # the first goes on from another video, if from any
            return None
        found = _read(self._facts_file(chunk.index - 1))
        if found is None:
            raise self._changed(chunk.index - 1)
        return found[1]

    @property
    def fp16_overflowed(self) -> bool:
        """Whether decoding in fp16 overflowed in a finished chunk; later ones are decoded in fp32."""
        return bool(self._facts) and self._facts[-1].get(FP16_OVERFLOWED) == str(True)

    def luma_changes(self) -> list[float] | None:
        """The `LumaChanges` of the finished chunks before encoding; None: an earlier version made a chunk."""
        if not all(LUMA_CHANGES in facts for facts in self._facts):
            return None
        return [change for facts in self._facts for change in json.loads(facts[LUMA_CHANGES])]

    def silent_videos(self, chunks: Sequence[Chunk]) -> list[Path]:
        """Paths of the finished chunks' silent videos.

        Raises:
            OutputError: one was changed since it was saved.
        """
        for chunk, facts in zip(chunks, self._facts, strict=True):
            if not _has_digest(self.silent_video(chunk), facts["video_sha256"]):
                raise self._changed(chunk.index)
        return [self.silent_video(chunk) for chunk in chunks]

    def records(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Position, digests, seconds, and since later versions decode type and forward passes, of each."""
        return [
            asdict(chunk)
            | {name: facts[name] for name in RECORDED if name in facts}
            | {"seconds": float(facts["seconds"])}
            | {name: int(facts[name]) for name in (FORWARD_PASSES, SKIPPED_PASSES) if name in facts}
            for chunk, facts in zip(chunks, self._facts, strict=True)
        ]

    def silent_video(self, chunk: Chunk) -> Path:
        """Path of a chunk's silent video."""
        return self.folder / f"{chunk.index:05d}.mp4"

    def _facts_file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def _place(self, chunk: Chunk) -> dict[str, str]:
        """What a chunk must follow from: the inputs, its number, and the frames before it."""
        before = self._facts[chunk.index - 1]["last_frames_sha256"] if chunk.index else ""
        return {"made_from": self.made_from(), "index": str(chunk.index), "follows": before}

    def _checked(self, chunk: Chunk) -> Facts | None:
        """The facts of a chunk whose files fit them; otherwise None."""
        found = _read(self._facts_file(chunk.index))
        if found is None:
            return None
        facts, last_frames = found
        in_place = facts.items() >= self._place(chunk).items()
        whole = in_place and facts["last_frames_sha256"] == _digest(last_frames)
        if not whole or not _has_digest(self.silent_video(chunk), facts["video_sha256"]):
            return None
        self._last_frame = _last(last_frames)
        return facts

    def _remove(self, chunk: Chunk) -> None:
        remove_file(self._facts_file(chunk.index))  # first: without its facts, a video does not count
        remove_file(self.silent_video(chunk))

    def _changed(self, index: int) -> OutputError:
        return OutputError(
            f"chunk {index} was changed while the run was under way",
            received=str(self.folder),
            remedy="Request the run again: it resumes at this chunk.",
        )


def _examined(
    frames: Iterable[video.Frames], digest: "hashlib._Hash", changes: LumaChanges
) -> Iterator[video.Frames]:
    for block in frames:
        digest.update(block.data)
        for frame in block:
            changes.add(frame)
        yield block


def _last(frames: Tensor) -> video.Frames:
    frame: video.Frames = to_uint8(frames[:, -1:])[0]
    return frame


def _read(path: Path) -> tuple[Facts, Tensor] | None:
    """Read the facts and the frames of a chunk; None if there are none, or they are damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, str] = dict(file.metadata() or {})
            frames: Tensor = file.get_tensor(FRAMES)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError):
        return None
    return (facts, frames) if facts.pop(FACTS_DIGEST, None) == digests.combined([facts]) else None


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return digests.sha256_of_file(path) == sha256
    except OSError:
        return False


def _digest(frames: Tensor) -> str:
    digest = hashlib.sha256(f"{frames.dtype}{tuple(frames.shape)}".encode())
    digest.update(frames.contiguous().numpy().data)
    return digest.hexdigest()
