"""An mp4 that can be played while it is written.

It is a sequence of fragments (ISO/IEC 14496-12, movie fragments), each with some pictures and their sound,
appended when complete. The packets are those of the finished chunks, so nothing is encoded for it but sound.
"""

import io
import struct
import time
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from talkinghead_lab.foundation.files import output_errors, remove_file
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media.reference import open_video
from talkinghead_lab.media.video import SoundEncoder, packets_of

# 0.4 seconds: a fragment costs some 300 bytes.
FRAMES_PER_FRAGMENT = 10
# The encoder of the sound gives the first packet after 2048 samples; a frame has 1920.
FRAMES_HEARD_AHEAD = 1
# A muxer for each fragment, since FFmpeg's offers no other way to end one at a chosen packet. The first
# declares by edit lists that decoding starts ahead of presentation. The others start where they are told.
FIRST = {"movflags": "+frag_custom+default_base_moof+skip_trailer+delay_moov", "fflags": "+bitexact"}
LATER = {
    "movflags": "+frag_custom+default_base_moof+skip_trailer+empty_moov+frag_discont",
    "fflags": "+bitexact",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}
PLAIN = {"fflags": "+bitexact"}
# Chromium plays what it has received of a file in whole blocks of this size only.
BLOCK_BYTES = 32 * 1024


class GrowingVideo:
    """Writes a growing mp4. A context manager, in which only complete fragments are ever in the file.

    Args:
        path: the file; an older one is removed, so that its readers are not disturbed.
        sound: [1 or 2 channels, samples] at 48 kHz, of the whole video.
        frame_count: of the whole video.

    Raises:
        OutputError: the file cannot be written, here and in every method.
    """

    def __init__(self, path: Path, sound: NDArray[np.float32], frame_count: int) -> None:
        self.path, self._frame_count = path, frame_count
        # When the first fragment was in the file (`time.perf_counter`).
        self.first_written: float | None = None
        remove_file(path)
        with output_errors("the growing video cannot be written", path):
            self._file = path.open("xb", buffering=0)
        # Only their streams are used: to encode the sound, and to keep what describes the pictures.
        self._sound_holder = av.open(io.BytesIO(), "w", format="mp4", options=FIRST)
        self._sound = SoundEncoder(self._sound_holder, sound)
        self._sound_holder.start_encoding()
        self._picture: VideoStream | None = None
        self._reorder_depth = 0
        self._ahead = [0, 0]  # ticks by which decoding starts ahead of presentation: pictures, sound
        self._added = self._chunk_start = 0  # pictures; of all chunks, and before the current one
        self._sounded = 0  # video frames whose sound was encoded
        self._fragments = self._size = 0
        self._pictures: list[Packet[Any]] = []
        self._heard: list[Packet[Any]] = []

    def __enter__(self) -> Self:
        """Return the video."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; after an error it stays as far as it goes."""
        self._file.close()
        self._sound_holder.close()  # a muxer that was started and not closed leaves 90 KiB behind

    def add(self, picture: VideoStream, packets: "list[Packet[Any]]") -> None:
        """Add encoded pictures of the chunk that is being made, in decoding order.

        Args:
            picture: their stream.
            packets: with timestamps from the start of the chunk.
        """
        if not packets:  # before the first, the stream does not describe itself yet
            return
        if self._picture is None or self._added == self._chunk_start:
            holder = av.open(io.BytesIO(), "w", format="mp4")
            self._picture = holder.add_stream_from_template(picture)
        if not self._added:
            self._reorder_depth = picture.codec_context.reorder_depth
        for packet in packets:
            moved = Packet(bytes(packet))
            moved.is_keyframe, moved.time_base = packet.is_keyframe, Fraction(1, FRAMES_PER_SECOND)
            moved.pts = self._chunk_start + _frame_number(packet)
            moved.dts = self._added - self._reorder_depth
            moved.duration = 1
            self._pictures.append(moved)
            self._added += 1
        while self._sounded < min(self._added + FRAMES_HEARD_AHEAD, self._frame_count):
            self._heard += self._sound.encode(self._sounded)
            self._sounded += 1
        if len(self._pictures) >= FRAMES_PER_FRAGMENT:
            self._write_fragment()

    def end_chunk(self) -> None:
        """Write the rest of the chunk, so that all of it can be played."""
        self._write_fragment()
        self._append(_padding(self._size))
        self._chunk_start = self._added

    def append(self, part: Path) -> None:
        """Add a chunk that was finished earlier: a silent mp4 of `write_video`."""
        with open_video(part) as (_, picture):
            self.add(picture, [packet for packet, _ in packets_of(part)])
        self.end_chunk()

    def finish(self) -> None:
        """Write what the encoder of the sound still holds."""
        self._heard += self._sound.flush()
        self._write_fragment()

    def _write_fragment(self) -> None:
        # The first declares how far decoding starts ahead, for which it needs packets of both streams.
        enough = any if self._fragments else all
        if not enough([self._pictures, self._heard]):
            return
        content = self._muxed()
        if self._fragments:
            content = content[content.index(b"moof") - 4 :]
        else:
            content += _padding(len(content))
        self._append(content)
        self._pictures, self._heard = [], []
        self._fragments += 1
        if self.first_written is None:
            self.first_written = time.perf_counter()

    def _append(self, content: bytes) -> None:
        with output_errors("the growing video cannot be written", self.path):
            self._file.write(content)
        self._size += len(content)

    def _muxed(self) -> bytes:
        """An mp4 of the waiting packets alone."""
        assert self._picture is not None
        waiting = [(self._picture, self._pictures), (self._sound.stream, self._heard)]
        options = (LATER if self._fragments else FIRST) | {"fragment_index": str(self._fragments + 1)}
        content = io.BytesIO()
        with av.open(content, "w", format="mp4", options=options) as container:
            streams = [container.add_stream_from_template(template) for template, _ in waiting]
            for number, (stream, (_, packets)) in enumerate(zip(streams, waiting, strict=True)):
                if not self._fragments:
                    self._ahead[number] = -cast(int, packets[0].dts)
                for packet in packets:
                    packet.stream = stream
                    if self._fragments:
                        packet.pts = cast(int, packet.pts) + self._ahead[number]
                        packet.dts = cast(int, packet.dts) + self._ahead[number]
                    container.mux(packet)
        return content.getvalue()


def _padding(size: int) -> bytes:
    """An empty box, with which a file of some bytes ends with a block."""
    if not size % BLOCK_BYTES:
        return b""
    content = bytes(-(size + 8) % BLOCK_BYTES)
    return struct.pack(">I4s", 8 + len(content), b"free") + content


def plain_copy(path: Path, largest: int) -> bytes:
    """What a growing video holds, as an mp4 whose index tells its length.

    Args:
        path: a file of `GrowingVideo`.
        largest: bytes of packets; of a longer video the newest part, from a key frame on.

    Raises:
        MediaError: it cannot be read.
    """
    packets: deque[Packet[Any]] = deque()
    starts: deque[Packet[Any]] = deque()  # key frames among them
    content, size = io.BytesIO(), 0
    with open_video(path) as (source, picture), av.open(content, "w", format="mp4", options=PLAIN) as copy:
        streams = {
            stream.index: copy.add_stream_from_template(stream)
            for stream in (picture, source.streams.audio[0])
        }
        for packet in source.demux(list(source.streams)):
            if packet.dts is None:  # the end of the stream
                continue
            packets.append(packet)
            size += packet.size
            if packet.stream is picture and packet.is_keyframe:
                starts.append(packet)
            while size > largest and len(starts) > 1:
                starts.popleft()
                while packets[0] is not starts[0]:
                    size -= packets.popleft().size
        begun = _seconds(packets[0]) if packets else Fraction(0)
        for packet in packets:
            if not begun or _seconds(packet) >= begun:  # sound may come a little late
                shift = round(begun / packet.time_base)
                packet.pts, packet.dts = cast(int, packet.pts) - shift, cast(int, packet.dts) - shift
                packet.stream = streams[packet.stream.index]
                copy.mux(packet)
    return content.getvalue()


def _seconds(packet: "Packet[Any]") -> Fraction:
    return cast(int, packet.pts) * packet.time_base


def _frame_number(packet: "Packet[Any]") -> int:
    return round(_seconds(packet) * FRAMES_PER_SECOND)
