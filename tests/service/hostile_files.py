"""Damaged and malicious files: claims of an index, times and sizes that lie, mutations of real files."""

import os
import random
import shutil
import subprocess
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims this size and whose data are far smaller."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def video(path: Path, size: int = 16, frames: int = 1, aspect: Fraction | None = None) -> Path:
    """A small mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if size < 64 else "libx264", rate=25)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.sample_aspect_ratio = aspect
        for number in range(frames):
            picture = np.full((size, size, 3), 40 + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def many_frames(path: Path, count: int) -> Path:
    """An mp4 of one frame whose index claims so many frames of one byte each."""
    data = bytearray(video(path).read_bytes())
    claimed = count.to_bytes(4, "big")
    stts, stsz, stsc = (data.index(name) for name in (b"stts", b"stsz", b"stsc"))
    data[stts + 12 : stts + 16] = claimed  # frames of one duration
    data[stsz + 8 : stsz + 12] = (1).to_bytes(4, "big")  # a size that holds for all frames
    data[stsz + 12 : stsz + 16] = claimed
    data[stsc + 16 : stsc + 20] = claimed  # frames in a chunk of the file
    path.write_bytes(data)
    return path


def with_timescale(recording: Path, path: Path, scale: int = 2**31 - 1) -> Path:
    """A recording as m4a whose clock runs this many times a second: it claims to be very short."""
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg
    subprocess.run([ffmpeg, "-v", "error", "-y", "-i", recording, path], check=True)
    data = bytearray(path.read_bytes())
    place = data.index(b"mdhd")
    data[place + 16 : place + 20] = scale.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def animation(path: Path, frames: int) -> Path:
    """An animation of large, equal frames: small in the file, large when decoded."""
    pictures = [Image.new("P", (3000, 3000), number % 256) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def mutations(seed: int, sources: list[Path], folder: Path, count: int) -> list[Path]:
    """Files that are cut, have bits flipped, or parts repeated or swapped."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        source = sources[number % len(sources)]
        data = bytearray(source.read_bytes())
        kind = chance.randrange(4)
        if kind == 0:
            data = data[: chance.randrange(len(data))]
        elif kind == 1:
            for _ in range(chance.randint(1, 40)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            for _ in range(chance.randint(1, 6)):  # in the head, where sizes and counts are
                data[chance.randrange(min(200, len(data)))] = chance.choice([0, 0x7F, 0x80, 0xFF])
        else:
            start, end = sorted(chance.randrange(len(data)) for _ in range(2))
            data[start:start] = data[start:end]
        path = folder / f"mutant{number}{source.suffix}"
        path.write_bytes(data)
        made.append(path)
    return made


def of_every_kind(folder: Path, count: int) -> list[Path]:
    """So many files, most of them mutations of real ones; next to them the sources, which are whole."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    sources = [folder / f"source{suffix}" for suffix in (".png", ".jpg", ".gif", ".webp")]
    for source in sources:
        noise.save(source)
    tone = 0.3 * np.sin(np.arange(8000) / 8)
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        soundfile.write(folder / f"source{suffix}", tone, 8000)
        sources.append(folder / f"source{suffix}")
    sources.append(video(folder / "source.mp4", size=64, frames=5))
    made = [
        many_frames(folder / "frames.mp4", 60_000_000),
        video(folder / "aspect.mp4", 2000, 2, Fraction(300, 1)),
        animation(folder / "animation.gif", 50),
        folder / "bomb.png",
        folder / "empty.png",
        folder / "pipe.wav",
        folder / "link.png",
    ]
    (folder / "bomb.png").write_bytes(png(50_000, 50_000))
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.wav")
    (folder / "link.png").symlink_to("/etc/passwd")
    return made + mutations(0, sources, folder, count - len(made))
