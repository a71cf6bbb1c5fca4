"""LSE-D and LSE-C: how well lips and sound are synchronised by SyncNet, whose weights the user supplies.

Follows SyncNet's released evaluation (Chung & Zisserman, "Out of time", 2016), which papers use for both
figures. That writes frames as JPEG and crops as MPEG-4 and reads them again; this encodes no picture.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from scipy.signal import medfilt
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import MediaError, MissingExtra
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.given_weights import SYNCNET
from talkinghead_lab.measures.syncnet_faces import FaceTrack
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.resampled_track import to_mono
from talkinghead_lab.models.judges.syncnet import COLUMNS, PICTURE_SIZE, WINDOW, SyncNet
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import load_strict

LARGEST_SHIFT = 15  # video frames, each way
SMOOTHED_FRAMES = 13
MARGIN = 0.4  # of half a face on each side, and twice that below
BORDER_GREY = 110.0  # pixels outside the frame
WINDOWS_AT_ONCE = 20


@dataclass(frozen=True)
class SyncScores:
    """SyncNet's verdict on a video.

    Args:
        distance: LSE-D, the smallest mean distance of lips and sound over all shifts; lower is better.
        confidence: LSE-C, the median over all shifts less that distance; higher is better.
        shift: delay of the sound at the smallest distance, in video frames.
    """

    distance: float
    confidence: float
    shift: int


@dataclass(frozen=True)
class SyncedLips:
    """What SyncNet sees of a face; any recording can be compared with it.

    Args:
        network: SyncNet.
        embeddings: [T, C], of the windows that begin at each frame.
        start: number of the first frame.
        frames: of the face; sound before and after does not count.
    """

    network: SyncNet
    embeddings: Tensor
    start: int
    frames: int

    @classmethod
    def read(cls, path: str | Path, track: FaceTrack) -> Self:
        """Read the lips of a finished video with the weights that the variable SYNCNET_MODEL names.

        Decodes the pictures a second time: the crops follow the smoothed path of the face, which is known
        only then.

        Args:
            path: the video.
            track: its face; what lies before and after does not count.

        Raises:
            CheckpointError: no weights, or not SyncNet's.
            MediaError: the face is shown for less than a window of 0.2 s.
        """
        network = load_syncnet(SYNCNET.path())
        pictures = face_crops(path, track)
        windows = _at_least_one(len(pictures) - WINDOW, len(pictures))
        with torch.inference_mode():
            embeddings = [
                network.embed_face(
                    torch.stack([pictures[k : k + WINDOW] for k in batch]).transpose(1, 2).float()
                )
                for batch in torch.arange(windows).split(WINDOWS_AT_ONCE)
            ]
        return cls(network, torch.cat(embeddings), track.start, len(track.boxes))


def sync_scores(lips: SyncedLips, soundtrack: audio.Wave) -> SyncScores:
    """Compare the lips of a video with a recording.

    Args:
        lips: of the video.
        soundtrack: from the video's start on, [channels, samples] at 48 kHz.

    Raises:
        MissingExtra: python_speech_features is not installed.
        MediaError: the recording is shorter than a window of 0.2 s.
    """
    samples = audio.SOUNDTRACK_RATE // FRAMES_PER_SECOND
    cepstrum = sound_cepstrum(soundtrack[:, lips.start * samples :][:, : lips.frames * samples])
    heard = (cepstrum.shape[1] + 1) // 4  # the last column is padded away
    windows = _at_least_one(min(len(lips.embeddings), heard - WINDOW), heard)
    with torch.inference_mode():
        sound = [
            lips.network.embed_sound(torch.stack([cepstrum[None, :, 4 * k : 4 * k + COLUMNS] for k in batch]))
            for batch in torch.arange(windows).split(WINDOWS_AT_ONCE)
        ]
        return best_shift(lips.embeddings[:windows], torch.cat(sound))


def _at_least_one(windows: int, frames: int) -> int:
    if windows < 1:
        raise MediaError("the video is shorter than a window of SyncNet", received=f"{frames} frames")
    return windows


def load_syncnet(path: Path) -> SyncNet:
    """Load SyncNet with its released weights.

    Raises:
        CheckpointError: damaged, or a tensor is missing, unexpected or misshapen.
    """
    network = SyncNet()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("_tracked")}
    # The released file predates these counters, which evaluation ignores.
    tensors = counters | read_tensors(path)
    load_strict(network, tensors, path.name, torch.float32, "cpu")
    return network


def best_shift(lips: Tensor, sound: Tensor, largest: int = LARGEST_SHIFT) -> SyncScores:
    """Compare embeddings of lips and sound, [T, C] each, at every shift of up to `largest` frames."""
    padded = functional.pad(sound, (0, 0, largest, largest))
    windows = padded.unfold(0, 2 * largest + 1, 1).transpose(1, 2)  # [T, shifts, C]
    distances = functional.pairwise_distance(lips[:, None], windows).mean(0)
    least, place = distances.min(0)
    return SyncScores(least.item(), (distances.median() - least).item(), int(place) - largest)


def face_crops(path: str | Path, track: FaceTrack) -> Tensor:
    """Crop a square around each frame's face along its smoothed path: uint8 [F, 3, 224, 224], BGR."""
    left, top, right, bottom = track.boxes.T
    half = np.maximum(right - left, bottom - top) / 2
    span = min(SMOOTHED_FRAMES, (len(half) - 1) // 2 * 2 + 1)
    half, x, y = (medfilt(values, span) for values in (half, (left + right) / 2, (top + bottom) / 2))
    frames = zip(islice(video.read_frames(path), track.start, None), half, x, y, strict=False)
    return torch.stack([_crop(pixels, *place) for pixels, *place in frames])


def _crop(pixels: video.Frames, half: float, x: float, y: float) -> Tensor:
    margin = int(half * (1 + 2 * MARGIN))
    bgr = torch.from_numpy(pixels).flip(-1).permute(2, 0, 1)[None].float()
    padded = functional.pad(bgr, (margin,) * 4, value=BORDER_GREY)
    top, bottom = int(y + margin - half), int(y + margin + half * (1 + 2 * MARGIN))
    left, right = int(x + margin - half * (1 + MARGIN)), int(x + margin + half * (1 + MARGIN))
    size = (PICTURE_SIZE, PICTURE_SIZE)
    return (
        functional.interpolate(padded[..., top:bottom, left:right], size, mode="bilinear")[0].round().byte()
    )


def sound_cepstrum(soundtrack: audio.Wave) -> Tensor:
    """Compute MFCCs [13, columns], 100 columns per second, of the sound as 16-bit mono at 16 kHz."""
    wave = soxr.resample(to_mono(soundtrack, audio.SOUNDTRACK_RATE), audio.SOUNDTRACK_RATE, audio.SAMPLE_RATE)
    samples: NDArray[np.int16] = (wave * 32768).round().clip(-32768, 32767).astype(np.int16)
    try:
        import python_speech_features
    except ImportError:
        raise MissingExtra(
            "SyncNet's cepstrum needs python_speech_features",
            remedy="Install it: pip install 'talkinghead_lab[faces]'.",
        ) from None
    return torch.from_numpy(python_speech_features.mfcc(samples, audio.SAMPLE_RATE)).float().T
