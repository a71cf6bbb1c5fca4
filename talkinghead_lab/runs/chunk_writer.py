"""Encodes and saves chunks in a thread of its own, while the next one is sampled."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

from talkinghead_lab.media.growing_video import GrowingVideo
from talkinghead_lab.runs.chunk_files import Abandoned, ArrivingChunk, ChunkFiles
from talkinghead_lab.sampling.chunks import Chunk

# Chunks whose frames are in memory: one is saved while the next one is generated.
CHUNKS_IN_MEMORY = 2


class ChunkWriter:
    """Saves chunks in order. A context manager, which waits for all chunks that were generated completely.

    Args:
        files: where they go.
        growing: the video that can be played meanwhile.
        on_saved: called in the caller's thread after a chunk was saved, while the next one is sampled.
    """

    def __init__(
        self, files: ChunkFiles, growing: GrowingVideo, on_saved: Callable[[], None] = lambda: None
    ) -> None:
        self.files, self.growing, self.on_saved = files, growing, on_saved
        self._thread = ThreadPoolExecutor(1, "chunk writer")
        self._saves: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the thread.

        Raises:
            OutputError: a chunk could not be saved.
        """
        self._thread.shutdown()
        with suppress(Abandoned):
            while self._saves:
                self._saves.popleft().result()

    @contextmanager
    def open(self, chunk: Chunk) -> Iterator[ArrivingChunk]:
        """Yield the next chunk, whose frames are to be added; it must be finished in the block.

        Raises:
            OutputError: an earlier chunk could not be saved.
        """
        self.check()
        if len(self._saves) == CHUNKS_IN_MEMORY:
            self._saves.popleft().result()
        arriving = ArrivingChunk(chunk)
        self._saves.append(self._thread.submit(self._save, arriving))
        try:
            yield arriving
        finally:
            if not arriving.generated.done():
                arriving.abandon()

    def check(self) -> None:
        """Report what was saved, and errors of saving.

        Raises:
            OutputError: a chunk could not be saved.
        """
        while self._saves and self._saves[0].done():
            self._saves.popleft().result()
            self.on_saved()

    def _save(self, arriving: ArrivingChunk) -> None:
        if self._failed:
            raise Abandoned  # it follows from the one that was not saved
        try:
            self.files.save(arriving, self.growing)
        except BaseException:
            self._failed = True
            raise
