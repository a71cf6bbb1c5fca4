"""Split a chained Ogg file, such as a saved radio stream, into its links.

FFmpeg's demuxer gives up where channels or sample rate change from one link to the next.
"""

import errno
import io
import os
from typing import BinaryIO

# A page: magic, version, flags, granule position, serial number, page number, checksum, number of segments,
# and a byte of length for each segment (RFC 3533, section 6).
MAGIC, HEADER, FLAGS = b"OggS", 27, 5
BEGINS_STREAM = 2


def links(file: BinaryIO) -> "list[FilePart]":
    """The links of a chained Ogg file; any other file is one part."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    starts = _starts(file) if file.read(len(MAGIC)) == MAGIC else []
    starts = starts if len(starts) > 1 else [0]
    return [FilePart(file, start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def _starts(file: BinaryIO) -> list[int]:
    """Positions at which streams begin after others have ended."""
    starts, position, began = list[int](), 0, False
    while True:
        file.seek(position)
        header = file.read(HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            return starts  # a damaged page: the demuxer finds the next one
        begins = bool(header[FLAGS] & BEGINS_STREAM)
        if begins and not began:
            starts.append(position)
        began = begins
        position += HEADER + header[-1] + sum(file.read(header[-1]))


class FilePart(io.RawIOBase):
    """A part of a file, read-only, for `av.open`."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.name = file.name
        self._file, self._start, self._size, self._position = file, start, stop - start, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; an impossible one gives FFmpeg's error code.

        PyAV turns an exception into a failure to open the file, while FFmpeg's demuxers expect that headers
        may point anywhere.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if not 0 <= base + offset < 2**63:
            return -errno.EINVAL
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """Fill a buffer as far as the part goes."""
        if self._position >= self._size:
            return 0
        self._file.seek(self._start + self._position)
        data = self._file.read(min(len(buffer), self._size - self._position))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
