"""Cuts a video of any length into chunks that share overlap frames, and cuts each chunk's audio windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, whole_chunk


@dataclass(frozen=True)
class Chunk:
    """One chunk of a video.

    Args:
        index: 0, 1, 2, …
        start: video frame number of its first sampled frame.
        frames: F, how many frames are sampled.
        repeated: overlap: how many of them, at the start, the previous chunk has already delivered.
        new: how many frames it adds to the video. Frames sampled past the end of a shot are dropped.
    """

    index: int
    start: int
    frames: int
    repeated: int
    new: int

    @property
    def seconds(self) -> float:
        """Start of the chunk in the video, in seconds."""
        return self.start / FRAMES_PER_SECOND

    @property
    def first_new(self) -> int:
        """Number of the first frame that it adds."""
        return self.start + self.repeated


def plan_chunks(
    total_frames: int,
    chunk_frames: int,
    motion_frame: int,
    trim: bool = False,
    cuts: Sequence[int] = (),
    continues: bool = False,
) -> list[Chunk]:
    """Plan chunks that together deliver each of `total_frames` frames once.

    Args:
        total_frames: of the video.
        chunk_frames: frames that a chunk samples, 4n + 1.
        motion_frame: overlap: frames shared with the previous chunk.
        trim: shorten the last chunk of a shot to the fewest latent frames that hold its new frames.
        cuts: numbers of the frames at which a new shot begins, rising, within the video; each starts a chunk
            that shares no frame with the one before.
        continues: the first chunk shares overlap frames, too: those of an earlier video.
    """
    chunks: list[Chunk] = []
    for delivered, end in pairwise((0, *cuts, total_frames)):
        repeated = motion_frame if continues and not chunks else 0
        while delivered < end:
            new = min(chunk_frames - repeated, end - delivered)
            frames = whole_chunk(repeated + new) if trim else chunk_frames
            chunks.append(Chunk(len(chunks), delivered - repeated, frames, repeated, new))
            delivered, repeated = delivered + new, motion_frame
    return chunks


def seams(chunks: Sequence[Chunk]) -> list[int]:
    """The numbers of the frames of a video at which a chunk goes on from the one before."""
    return [chunk.first_new for chunk in chunks[1:] if chunk.repeated]


def audio_windows(embedding: Tensor, chunk: Chunk, window: int) -> Tensor:
    """Gather the wav2vec2 rows around each frame: [rows, layers, channels] → [F, window, layers, channels].

    Indices before the recording repeat its first row. Indices past its end are mirrored, as in the reference:
    the mouth keeps moving in the frames that are dropped.
    """
    rows = len(embedding)
    offsets = torch.arange(window) - window // 2
    wanted = torch.arange(chunk.start, chunk.start + chunk.frames).unsqueeze(1) + offsets
    mirrored = torch.where(wanted < rows, wanted, 2 * rows - 1 - wanted)
    return embedding[mirrored.clamp(min=0).to(embedding.device)]
