"""Cuts a video of any length into chunks that share overlap frames, and cuts each chunk's audio windows."""

from dataclasses import dataclass

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
        new: how many frames it adds to the video. Frames sampled past the end of the recording are dropped.
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


def plan_chunks(total_frames: int, chunk_frames: int, motion_frame: int, trim: bool = False) -> list[Chunk]:
    """Plan chunks that together deliver each of `total_frames` frames once.

    Args:
        total_frames: of the video.
        chunk_frames: frames that a chunk samples, 4n + 1.
        motion_frame: overlap: frames shared with the previous chunk.
        trim: shorten the last chunk to the fewest latent frames that hold its new frames.
    """
    chunks: list[Chunk] = []
    delivered = 0
    while delivered < total_frames:
        repeated = motion_frame if chunks else 0
        new = min(chunk_frames - repeated, total_frames - delivered)
        frames = whole_chunk(repeated + new) if trim else chunk_frames
        chunks.append(Chunk(len(chunks), delivered - repeated, frames, repeated, new))
        delivered += new
    return chunks


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
