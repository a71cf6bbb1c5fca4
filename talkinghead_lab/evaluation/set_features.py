"""Features of frames and of short windows, whose sets are compared between systems: FID, KID, FVD."""

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.nn import functional

from talkinghead_lab.errors import OutputError
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.measures.given_weights import I3D, INCEPTION, GivenWeights
from talkinghead_lab.measures.measure import Kind
from talkinghead_lab.media.video import Frames, evenly_spaced_numbers
from talkinghead_lab.models.judges import inception
from talkinghead_lab.models.judges.presenters import COMPONENTS
from talkinghead_lab.weights.formats.containers import read_tensors
from talkinghead_lab.weights.reading import load_strict

SAMPLED_FRAMES = 16  # of each clip, evenly spaced, for distances between sets of frames
WINDOWS = 4  # of each clip, evenly spaced and apart, for distances between sets of windows
WINDOW_FRAMES = 16  # as in most published FVD
I3D_SIZE = 224  # pixels
I3D_CHANNELS = 400
MOTION_COMPONENTS = 16  # of the presenters' principal components; finer ones are mostly noise

Features = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureKind:
    """Features of one network.

    Args:
        name: as it is stored.
        frechet, kernel: names of the two distances that are taken of them.
        channels: of the features.
        few: fewer samples make the Fréchet distance visibly too large; 0: few people do.
        sample: what one feature is of.
        weights: of the network; None: it ships with the package and suits its cartoon presenters only.
    """

    name: str
    frechet: str
    kernel: str
    channels: int
    few: int
    sample: str
    weights: GivenWeights | None = None


# The authors of FID advise no fewer frames than 10,000 (github.com/bioinf-jku/TTUR); StyleGAN-V's evaluation
# takes 2048 windows.
PRESENTERS = FeatureKind("presenters", "drawn_fid", "drawn_kid", COMPONENTS, 0, "frames")
MOTION = FeatureKind("motion", "drawn_fvd", "drawn_kvd", 3 * MOTION_COMPONENTS, 0, "windows")
FRAMES = FeatureKind("inception", "fid", "kid", inception.CHANNELS, 10_000, "frames", INCEPTION)
CLIPS = FeatureKind("i3d", "fvd", "kvd", I3D_CHANNELS, 2048, "windows", I3D)
FEATURE_KINDS = (PRESENTERS, MOTION, FRAMES, CLIPS)

DISTANCES: dict[str, Kind] = {
    "drawn_fid": Kind("1", "lower", "formula of FID, features of the bundled face reader"),
    "drawn_kid": Kind("1", "lower", "formula of KID, features of the bundled face reader"),
    "drawn_fvd": Kind("1", "lower", "formula of FVD, motion of the bundled face reader's features"),
    "drawn_kvd": Kind("1", "lower", "formula of KID, motion of the bundled face reader's features"),
    "fid": Kind("1", "lower", "Heusel et al. 2017", (INCEPTION,)),
    "kid": Kind("1", "lower", "Bińkowski et al. 2018", (INCEPTION,)),
    "fvd": Kind("1", "lower", "Unterthiner et al. 2018", (I3D,)),
    "kvd": Kind("1", "lower", "formula of KID, features of FVD", (I3D,)),
}


class FeatureTaker:
    """Takes the features of a clip for which there are weights while others look at its frames.

    It keeps one window of frames at most.

    Args:
        frames: length of the clip.
    """

    def __init__(self, frames: int) -> None:
        self.count = 0
        self._sampled = set(evenly_spaced_numbers(frames, SAMPLED_FRAMES))
        self._starts = window_starts(frames)
        self._window: list[Frames] = []
        self._of_frames: list[Features] | None = [] if INCEPTION.digest() else None
        self._of_windows: list[Features] | None = [] if I3D.digest() else None

    def watch(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        """Hand the frames on, uint8 [H, W, 3] each."""
        for pixels in frames:
            if self._of_frames is not None and self.count in self._sampled:
                self._of_frames.append(inception_features(pixels))
            if self._of_windows is not None and (self._window or self.count in self._starts):
                self._window.append(pixels)
                if len(self._window) == WINDOW_FRAMES:
                    self._of_windows.append(i3d_features(np.stack(self._window)))
                    self._window = []
            self.count += 1
            yield pixels

    def features(self) -> dict[str, Features]:
        """[samples, channels] of every kind that can be taken, by its name."""
        taken = ((FRAMES, self._of_frames), (CLIPS, self._of_windows))
        return {kind.name: _stacked(kind, rows) for kind, rows in taken if rows is not None}


def window_starts(frames: int) -> list[int]:
    """First frames of a clip's windows: as many as fit up to WINDOWS, evenly spaced, without overlap."""
    count = min(WINDOWS, frames // WINDOW_FRAMES)
    return [round(number * (frames - WINDOW_FRAMES) / max(1, count - 1)) for number in range(count)]


def drawn_features(components: Features, frames: int) -> dict[str, Features]:
    """[samples, channels] of the kinds for cartoon presenters, by name.

    Args:
        components: of all frames, [F, 32], as `MouthReader` gives them.
        frames: length of the clip; the video may be shorter.
    """
    sampled = [number for number in evenly_spaced_numbers(frames, SAMPLED_FRAMES) if number < len(components)]
    windows = [components[start : start + WINDOW_FRAMES] for start in window_starts(frames)]
    moving = [motion_features(window) for window in windows if len(window) == WINDOW_FRAMES]
    return {PRESENTERS.name: components[sampled], MOTION.name: _stacked(MOTION, moving)}


def _stacked(kind: FeatureKind, rows: Sequence[Features]) -> Features:
    return np.stack(rows) if rows else np.zeros((0, kind.channels), np.float32)


def motion_features(window: Features) -> Features:
    """How a window's principal components move, [48], whatever they are.

    The standard deviations over time of the first components, of their change from frame to frame, and of the
    change of that.

    Args:
        window: components of consecutive frames, [F, 32].
    """
    path = window[:, :MOTION_COMPONENTS].astype(np.float64)
    spread = [np.diff(path, order, axis=0).std(0) for order in range(3)]
    found: Features = np.concatenate(spread).astype(np.float32)
    return found


def inception_features(pixels: Frames) -> Features:
    """Inception's features [2048] of a frame uint8 [H, W, 3]."""
    with torch.inference_mode():  # one by one, so that the features do not depend on the batch
        frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        found: Features = _inception(INCEPTION.path())(frame)[0].numpy()
    return found


@cache
def _inception(path: Path) -> inception.Inception:
    network = inception.Inception()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("_tracked")}
    load_strict(network, counters | read_tensors(path), path.name, torch.float32, "cpu")
    return network.eval()


def i3d_features(window: Frames) -> Features:
    """I3D's outputs before the softmax [400], of a window uint8 [F, H, W, 3]."""
    with torch.inference_mode():
        outputs = _i3d(I3D.path())(i3d_input(window), rescale=False, resize=False, return_features=True)
        found: Features = outputs[0].float().numpy()
    return found


def i3d_input(window: Frames) -> Tensor:
    """Resize whole frames, bilinearly without antialiasing: uint8 [F, H, W, 3] → [1, 3, F, 224, 224]."""
    frames = torch.from_numpy(window).permute(0, 3, 1, 2).float()
    resized = functional.interpolate(frames, (I3D_SIZE, I3D_SIZE), mode="bilinear", align_corners=False)
    return (resized / 127.5 - 1).transpose(0, 1)[None]


@cache
def _i3d(path: Path) -> torch.jit.ScriptModule:
    """TorchScript can run code when it is loaded, so the bytes themselves are checked."""
    content = io.BytesIO(I3D.checked_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the published file has this format
        network: torch.jit.ScriptModule = torch.jit.load(content, map_location="cpu").eval()
    return network


def write_features(path: Path, features: Mapping[str, Features]) -> None:
    """Replace a clip's file of features.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(save(dict(features)))


def stored_features(scores: Path, clip: str, kind: FeatureKind) -> Features | None:
    """Features of a scored clip, [samples, channels]; None if they were not taken.

    Args:
        scores: folder of a system's scores.
        clip: id.
        kind: of features; no others are read.

    Raises:
        OutputError: the file is damaged.
    """
    path = scores / f"{clip}.safetensors"
    try:
        if not path.is_file():
            return None
        with safe_open(path, "numpy") as stored:
            names = stored.keys()
            found: Features | None = stored.get_tensor(kind.name) if kind.name in names else None
            return found
    except SafetensorError as error:
        raise OutputError(
            f"a file of the benchmark cannot be read ({error})", received=str(path), remedy="Remove it."
        ) from None
