"""How good a video is, measured on its pixels and its sound, and what it cost.

`measure_video` takes every measure that a video allows; of the others it says why not. The readers see the
drawn presenter of the embedded checkpoint: a small network, trained on renderings whose truth is known, reads
the opening of the mouth and the pose of the head from single frames. Mouths of photographed people are read
where the user has the models (`faces`, `sync_distance`). Units and directions are in `measures.KINDS`.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pyloudnorm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from talkinghead_lab import audio, faces, fingerprints, sync_distance, video
from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.frame_measures import frame_measures
from talkinghead_lab.image import fit
from talkinghead_lab.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures import Measure
from talkinghead_lab.params import GenerationParams, local_file
from talkinghead_lab.source import open_source

READER_SIZE = 128
READINGS = ("opening", "turn", "nod", "tilt", "shift_x", "shift_y", "scale")
# What one unit of the network's output stands for, and what zero does: degrees, half-pictures, times.
READING_SCALES = (0.5, 10.0, 7.0, 4.0, 0.05, 0.04, 0.06)
READING_CENTRES = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.03)

FRAMES_FOR_IDENTITY = 8
LONGEST_READ = 2000  # frames whose mouths are read; longer videos are read at their start
READ_AT_ONCE = 16  # frames; one by one the small network takes half as long again
LARGEST_LAG = 3  # frames; beyond an eighth of a second, lips and sound are seen to part

Features = Callable[[Tensor], Tensor]
Opening = NDArray[np.float64] | None


def measure_video(
    path: str | Path, params: GenerationParams, seams: Sequence[int], features: Features | None = None
) -> list[Measure]:
    """Every measure of a finished video.

    Args:
        path: the video.
        params: the request that it was made from.
        seams: the numbers of the frames at which a new chunk takes over.
        features: an image encoder, [1, 3, H, W] in [−1, 1] → [1, tokens, channels], for `identity`.
    """
    return [
        *lip_measures(path, params),
        identity(path, params, features),
        *frame_measures(path, seams),
        loudness(path),
    ]


def lip_measures(path: str | Path, params: GenerationParams) -> list[Measure]:
    """Every measure of how lips and sound go together.

    The drawn presenter's mouth is read by this package's own reader, a photographed one's by `faces`.
    """
    seen: faces.Faces | None = None
    no_face = "two people speak, and the readers see one"
    if params.speakers == 1:
        try:
            seen = faces.see_faces(path, LONGEST_READ)
        except TalkingHeadError as error:
            no_face = f"no reader of photographed faces: {error}"
    drawn = params.checkpoint == "embedded" and params.speakers == 1
    opening: Opening = None
    why: str | None = no_face
    if drawn:
        opening, why = read_openings(path, LONGEST_READ), None
    elif seen is not None:
        opening, why = seen.opening, None
    return [
        lip_correlation(opening, params, why),
        lip_error(
            opening if drawn else None, params, why or "only the drawn mouth's opening has a true size"
        ),
        mouth_follows_sound(opening, path, why),
        *_syncnet(path, seen, no_face),
    ]


def lip_correlation(opening: Opening, params: GenerationParams, why_not: str | None = None) -> Measure:
    """How the mouth follows the truth: Pearson's correlation of the mouth's opening in each frame and of what
    the shipped recordings' synthesiser said (unit 1, higher is better). This package's own measure.
    """
    wanted, why_not = _truth(opening, params, why_not)
    if opening is None or wanted is None:
        return Measure.of("lip_correlation", None, why_not)
    if min(opening[: len(wanted)].std(), wanted.std()) < 1e-6:
        return Measure.of("lip_correlation", None, "the mouth does not move")
    return Measure.of("lip_correlation", float(np.corrcoef(opening[: len(wanted)], wanted)[0, 1]))


def lip_error(opening: Opening, params: GenerationParams, why_not: str | None = None) -> Measure:
    """How far the drawn mouth is from the truth: mean absolute difference of the openings (unit: opening,
    0 shut … 1 wide; lower is better). This package's own measure.
    """
    wanted, why_not = _truth(opening, params, why_not)
    if opening is None or wanted is None:
        return Measure.of("lip_error", None, why_not)
    return Measure.of("lip_error", float(np.abs(opening[: len(wanted)] - wanted).mean()))


def mouth_follows_sound(opening: Opening, path: str | Path, why_not: str | None = None) -> Measure:
    """How the mouth goes with the sound, for any recording: Pearson's correlation of the opening and of the
    loudness under each frame, at the best of the lags of at most 3 frames (unit 1, higher is better; after
    Chandrasekaran et al. 2009, who find the two correlated in filmed speech). Loudness tells nothing of a
    mouth's shape, so this finds lips that do not go with the sound rather than ranking good ones.
    """
    if opening is None:
        return Measure.of("mouth_follows_sound", None, why_not)
    wave = audio.read_soundtrack(path).mean(axis=0)
    value = correlation_with_loudness(opening, wave, audio.SOUNDTRACK_RATE)
    still = "mouth or loudness do not change" if value is None else None
    return Measure.of("mouth_follows_sound", value, still)


def correlation_with_loudness(opening: Opening, wave: NDArray[np.float32], rate: int) -> float | None:
    """Pearson's correlation of a mouth's opening [F] and the loudness of a mono sound, at the best lag; None
    where one of them does not change."""
    if opening is None:
        return None
    samples = rate // FRAMES_PER_SECOND
    padded = np.pad(wave, (0, max(0, len(opening) * samples - len(wave))))[: len(opening) * samples]
    loudness = np.sqrt(np.square(padded.reshape(-1, samples), dtype=np.float64).mean(axis=1))
    lags = range(-LARGEST_LAG, LARGEST_LAG + 1)
    found = [_correlation(opening[max(lag, 0) :], loudness[max(-lag, 0) :]) for lag in lags]
    return max((value for value in found if value is not None), default=None)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    length = min(len(first), len(second))
    first, second = first[:length], second[:length]
    if length < 2 or min(first.std(), second.std()) < 1e-6:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _syncnet(path: str | Path, seen: faces.Faces | None, no_face: str) -> list[Measure]:
    """LSE-C and LSE-D; their source is in `sync_distance`."""
    scores = None
    try:
        scores = sync_distance.sync_scores(path, seen) if seen is not None else None
    except TalkingHeadError as error:
        no_face = str(error)
    if scores is None:
        return [Measure.of(name, None, no_face) for name in ("lse_c", "lse_d")]
    return [Measure.of("lse_c", scores.confidence), Measure.of("lse_d", scores.distance)]


def mouth_truth() -> dict[str, list[float]]:
    """The mouth's opening in every video frame, for each shipped recording by its file's digest."""
    return json.loads((files("talkinghead_lab") / "embedded" / "mouth_truth.json").read_text("utf-8"))


def _truth(
    opening: Opening, params: GenerationParams, why_not: str | None
) -> tuple[NDArray[np.float64] | None, str | None]:
    """(how the mouth should be open, no longer than what was read; why that is not known)."""
    if opening is None:
        return None, why_not
    truth = mouth_truth().get(fingerprints.known_sha256(local_file(params.audio_path)))
    if truth is None:
        return None, "how the mouth should move is known only for the recordings that ship with the package"
    return np.asarray(truth[: len(opening)]), None


def read_openings(path: str | Path, frames: int) -> NDArray[np.float64]:
    """How far the drawn presenter's mouth is open in each of a video's first frames, 0 shut … 1 wide."""
    shown = itertools.islice(video.read_frames(path), frames)
    openings: list[Tensor] = []
    while some := list(itertools.islice(shown, READ_AT_ONCE)):
        openings.append(mouth_opening(torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) / 127.5 - 1))
    return torch.cat(openings).double().numpy()


def identity(path: str | Path, params: GenerationParams, features: Features | None) -> Measure:
    """How alike the person stays: mean cosine similarity between the image encoder's features of the portrait
    and of frames spread over the video (unit 1, higher is better).

    CLIP-I of DreamBooth (arXiv 2208.12242), with the mean over the encoder's tokens in place of its
    projection, which the released file has not.
    """
    if features is None:
        return Measure.of("identity", None, "no image encoder was given")
    pictures = [picture for _, picture in video.evenly_spaced(path, FRAMES_FOR_IDENTITY)]
    portrait = open_source(local_file(params.image_path)).frame_at(0.0)
    with torch.inference_mode():
        seen = [_summary(features, fit(picture, *pictures[0].size)) for picture in (portrait, *pictures)]
        alike = functional.cosine_similarity(seen[0], torch.stack(seen[1:]), dim=-1)
    return Measure.of("identity", alike.mean().item())


def _summary(features: Features, pixels: Tensor) -> Tensor:
    return features(pixels[None].float() / 127.5 - 1)[0].float().mean(0).cpu()


def cost(stages: Mapping[str, Mapping[str, float]], seconds: float, frames: int) -> list[Measure]:
    """What a run took: seconds for each frame of the video (lower is better), and the largest memory of any
    stage, of the process on the host and of PyTorch on the GPU (unit: GiB, lower is better).

    Args:
        stages: of `profiling.StageClock`.
        seconds: of all chunks together, sampling and decoding.
        frames: of the video.
    """
    peaks = [
        ("peak_host_gib", "this machine's kernel tells no peak of memory"),
        ("peak_gpu_gib", "the run used no GPU"),
    ]
    found = [Measure.of("seconds_per_frame", seconds / frames)]
    for name, why_not in peaks:
        value = max((stage[name] for stage in stages.values() if name in stage), default=None)
        found.append(Measure.of(name, value, why_not if value is None else None))
    return found


def loudness(path: str | Path) -> Measure:
    """Integrated loudness of the sound track (ITU-R BS.1770-4; unit: LUFS, neither direction is better)."""
    wave = audio.read_soundtrack(path)
    if wave.shape[1] < 0.4 * audio.SOUNDTRACK_RATE:
        return Measure.of("loudness", None, "the sound is shorter than the meter's 0.4 s")
    value = pyloudnorm.Meter(audio.SOUNDTRACK_RATE).integrated_loudness(wave.T)
    if not math.isfinite(value):
        return Measure.of("loudness", None, "the sound is below the meter's gate of −70 LUFS")
    return Measure.of("loudness", float(value))


@dataclass(frozen=True)
class HeadPose:
    """The pose in each frame, [F] each: degrees (turn to the picture's right, nod down, tilt),
    half-pictures (shift right, down) and times (scale)."""

    turn: Tensor
    nod: Tensor
    tilt: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor


class FaceReader(nn.Module):
    """A small convolutional network from a frame of READER_SIZE² pixels to READINGS."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 80), hidden: int = 96):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            size = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(before, width, size, stride=2, padding=size // 2),
                nn.GroupNorm(4, width),
                nn.SiLU(),
            ]
            before = width
        grid = READER_SIZE >> len(widths)
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.SiLU(), nn.Conv2d(before, 16, 1)]
        self.features = nn.Sequential(*layers)
        self.readout = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * grid**2, hidden), nn.SiLU(), nn.Linear(hidden, len(READINGS))
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[F, 3, 128, 128] in [−1, 1] → [F, 7] in the units of READINGS."""
        raw = self.readout(self.features(frames))
        return raw * raw.new_tensor(READING_SCALES) + raw.new_tensor(READING_CENTRES)


def mouth_opening(frames: Tensor) -> Tensor:
    """How far the drawn presenter's mouth is open in each frame: [F], 0 shut … 1 wide open.

    Args:
        frames: [F, 3, H, W] in [−1, 1], square, best of 128 pixels or more.
    """
    return read_faces(frames)[:, 0].clamp(0, 1)


def head_pose(frames: Tensor) -> HeadPose:
    """The drawn presenter's head pose in each frame; `frames` as for `mouth_opening`."""
    return HeadPose(*read_faces(frames)[:, 1:].unbind(1))


@torch.no_grad()
def read_faces(frames: Tensor, frames_at_once: int = 64) -> Tensor:
    """[F, 7]: READINGS of each frame, [F, 3, H, W] in [−1, 1], on the frames' device."""
    reader = _reader().to(frames.device)
    parts = frames.float().split(frames_at_once)
    return torch.cat([reader(reader_input(part)) for part in parts])


def reader_input(frames: Tensor) -> Tensor:
    """Frames at the size that the reader sees."""
    size = (READER_SIZE, READER_SIZE)
    return functional.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)


@cache
def _reader() -> FaceReader:
    reader = FaceReader()
    with as_file(files("talkinghead_lab") / "embedded" / "face_reader.safetensors") as path:
        weights = load_file(path)
    reader.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return reader.eval().requires_grad_(False)
