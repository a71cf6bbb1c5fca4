"""Read the packets of a stream."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

Kind = TypeVar("Kind", AudioStream, VideoStream)


def demux(container: InputContainer, stream: Kind) -> Iterator["Packet[Kind]"]:
    """The packets of a stream, also where further streams appear inside the file.

    PyAV may raise an IndexError for those, after the last packet.
    """
    with suppress(IndexError):
        yield from container.demux(stream)
