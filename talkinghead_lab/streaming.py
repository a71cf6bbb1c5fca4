"""Cuts a video of any length into chunks that share motion frames, and gives each chunk its audio windows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from talkinghead_lab.latent_grid import FRAMES_PER_SECOND


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


def plan_chunks(total_frames: int, chunk_frames: int, motion_frame: int) -> list[Chunk]:
    """Chunks that together deliver every one of `total_frames` frames once."""
    chunks = [Chunk(0, 0, chunk_frames, 0, min(chunk_frames, total_frames))]
    delivered = chunk_frames
    while delivered < total_frames:
        new = min(chunk_frames - motion_frame, total_frames - delivered)
        chunks.append(Chunk(len(chunks), delivered - motion_frame, chunk_frames, motion_frame, new))
        delivered += chunk_frames - motion_frame
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
