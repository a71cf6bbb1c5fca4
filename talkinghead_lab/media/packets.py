"""Read the packets of a stream."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

Kind = TypeVar("Kind", AudioStream, VideoStream)
# FFmpeg's demuxers ask to be called again where they look for the next packet, at most every few kilobytes.
MAX_CALLS = 10_000


def demux(container: InputContainer, stream: Kind) -> Iterator["Packet[Kind]"]:
    """The packets of a stream, also behind damaged parts and where further streams appear inside the file.

    PyAV may raise an IndexError for those, after the last packet.
    """
    with suppress(IndexError):
        for _ in range(MAX_CALLS):
            with suppress(av.error.BlockingIOError):
                yield from container.demux(stream)
                return
