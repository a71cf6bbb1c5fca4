"""Cuts a video of any length into chunks that share motion frames, and gives each chunk its audio windows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND, whole_chunk


@dataclass(frozen=True)
class Chunk:
    """One chunk of a video.

    Args:
        index: 0, 1, 2, …
        start: the video frame that its first sampled frame is.
        frames: F, how many frames are sampled.
        repeated: how many of them, at the start, the chunk before has already delivered.
        new: how many frames it adds to the video; sampled frames past the recording's end are dropped.
    """

    index: int
    start: int
    frames: int
    repeated: int
    new: int

    @property
    def seconds(self) -> float:
        """Where in the video the chunk starts."""
        return self.start / FRAMES_PER_SECOND


def plan_chunks(total_frames: int, chunk_frames: int, motion_frame: int, trim: bool = False) -> list[Chunk]:
    """Chunks that together deliver every one of `total_frames` frames once.

    Args:
        trim: the last chunk samples no more whole latents than it delivers.
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
    """The wav2vec2 rows around each frame: [rows, layers, channels] → [F, window, layers, channels].

    Before the recording its first row is repeated. Past its end the rows run backwards, as in the reference,
    so that the mouth goes on moving in the frames that are dropped.
    """
    rows = len(embedding)
    offsets = torch.arange(window) - window // 2
    wanted = torch.arange(chunk.start, chunk.start + chunk.frames).unsqueeze(1) + offsets
    mirrored = torch.where(wanted < rows, wanted, 2 * rows - 1 - wanted)
    return embedding[mirrored.clamp(min=0).to(embedding.device)]
