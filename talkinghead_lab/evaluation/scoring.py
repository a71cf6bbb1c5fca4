"""Scores of a system's videos, clip by clip, by one protocol.

The protocol:

- Pictures are decoded once and never encoded again. 25 times a second, the frame counts that a player shows.
- Sound is that of the manifest, whatever the video's own sound track holds.
- As many frames count as the clip has. A video that lacks more than LONGEST_GAP of them failed.
- Failures stay in the table.
- Nothing is cropped or resized but by the measures themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from talkinghead_lab.errors import OutputError, TalkingHeadError
from talkinghead_lab.evaluation.manifest import Clip, Manifest, mouth_truth, reference_picture
from talkinghead_lab.evaluation.set_features import Features, FeatureTaker, drawn_features, write_features
from talkinghead_lab.foundation.digests import combined, known_sha256
from talkinghead_lab.foundation.files import atomic_path, output_errors
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.cartoon_faces import MouthReader
from talkinghead_lab.measures.given_weights import given_digests
from talkinghead_lab.measures.judge import Heard, Subject, judge_frames
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.media import audio, video
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.models.judges.presenters import presenter_appearance
from talkinghead_lab.workers.worker import Failure, Worker

PROTOCOL = 8  # a change of anything that moves a value raises it
LONGEST_GAP = 0.1  # of the clip's frames
# Of the measures of a run, those that compare systems; the others are about one run.
COMPARED = (
    "lip_correlation", "lip_error", "mouth_follows_sound", "silent_lip_motion", "lse_c", "lse_d",
    "identity", "identity_drift", "csim", "flicker", "color_drift", "motion", "head_motion", "sharpness",
    "clip_quality",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What is known of one system's video of one clip.

    Args:
        clip: id.
        identity: who is seen.
        measures: by name; empty for a failure.
        failure: why there are no values.
        weights: SHA-256 of the files that the user supplied, by variable.
        features: for distances between sets, by kind. They are stored in a file of their own, which
            `set_features.stored_features` reads.
    """

    clip: str
    identity: str
    measures: dict[str, Measure]
    failure: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)

    @classmethod
    def failed(cls, clip: Clip, reason: str) -> Self:
        """The score of a video that has no values."""
        return cls(clip.id, clip.identity, {}, reason)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        measures = {name: vars(measure) for name, measure in self.measures.items()}
        stored = {name: value for name, value in vars(self).items() if name != "features"}
        return stored | {"measures": measures}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        measures = {name: Measure(**fields) for name, fields in stored["measures"].items()}
        return cls(**stored | {"measures": measures})


@dataclass(frozen=True)
class ScoreTask:
    """One video to score, which a worker process may do.

    Args:
        stored: the files of its scores, one for each recording; features lie beside them.
        clip, heard, path, cartoon: as of `score_clip`.
    """

    stored: tuple[Path, ...]
    clip: Clip
    heard: tuple[Clip, ...]
    path: Path
    cartoon: bool

    @property
    def name(self) -> str:
        """System and clip."""
        return f"{self.stored[0].parents[1].name}/{self.clip.id}"

    @property
    def is_done(self) -> bool:
        """Whether the scores of these very files are stored.

        Raises:
            OutputError: a stored score is damaged.
        """
        return all(
            stored.is_file() and read_json(stored).get("made_from") == self._made_from(heard)
            for stored, heard in zip(self.stored, self.heard, strict=True)
        )

    def run(self, worker: Worker) -> None:
        """Score the video and store the scores.

        One thread computes, since sums depend on their number, and as many videos as there are workers are
        scored at once.

        Raises:
            OutputError: the folder cannot be written, or a clip is not there, which is no fault of the video.
        """
        for clip in (self.clip, *self.heard):
            if not clip.video.is_file():
                remedy = "Every machine that scores needs the clips at the same place."
                raise OutputError("a clip is missing", received=str(clip.video), remedy=remedy)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            scores = score_clip(self.clip, self.heard, self.path, self.cartoon)
        finally:
            torch.set_num_threads(threads)
        shown = {
            "video": str(self.path),
            "start": self.clip.start if self.path == self.clip.video else 0.0,
            "frames": self.clip.frames,
        }
        for stored, heard, score in zip(self.stored, self.heard, scores, strict=True):
            write_features(stored.with_suffix(".safetensors"), score.features)
            content = {"made_from": self._made_from(heard), "shown": shown, "score": score.to_json()}
            write_json(stored, content)

    def record_failure(self, failure: Failure) -> None:
        """End the scoring: what is no fault of the video is no failure of its system.

        Raises:
            OutputError: always.
        """
        raise OutputError(
            f"a video could not be scored ({failure.error})",
            received=f"{self.name}, {self.path}",
            remedy="Run the same command again, with fewer --workers if memory ran out. Scores stay.",
        )

    def moved(self, folder: Path) -> Self:
        """The same task with its scores in another folder."""
        return replace(self, stored=tuple(folder / f"{k}.json" for k in range(len(self.stored))))

    def results(self) -> dict[str, bytes]:
        """The features and the scores, by the number of the recording."""
        return {
            f"{number}{suffix}": stored.with_suffix(suffix).read_bytes()
            for number, stored in enumerate(self.stored)
            for suffix in (".safetensors", ".json")
        }

    def collect(self, results: Mapping[str, bytes]) -> None:
        """Store the features and the scores, which mark the features as complete.

        Raises:
            OutputError: they cannot be written, or are those of other files.
        """
        for number, (stored, heard) in enumerate(zip(self.stored, self.heard, strict=True)):
            if json.loads(results[f"{number}.json"])["made_from"] != self._made_from(heard):
                raise OutputError(
                    "a machine of the cluster scored other files",
                    received=f"{self.name}, {self.path}",
                    remedy="Every machine needs the same clips, videos and given weights at the same place.",
                )
            for suffix in (".safetensors", ".json"):
                with atomic_path(stored.with_suffix(suffix), overwrite=True) as temporary:
                    temporary.write_bytes(results[f"{number}{suffix}"])

    def _made_from(self, heard: Clip) -> str:
        files = (self.path, heard.truth)
        digests = [known_sha256(file) if file and file.is_file() else None for file in files]
        spans = [each.model_dump(mode="json", exclude={"video", "truth"}) for each in (self.clip, heard)]
        return combined([PROTOCOL, *spans, *digests, self.cartoon, given_digests()])


def score_tasks(folder: Path, manifest: Manifest, video_of: Callable[[Clip], Path]) -> list[ScoreTask]:
    """The videos of a system, to be scored into a folder; a clip without a video gets its failure at once.

    Args:
        folder: of the system's scores.
        manifest: the clips.
        video_of: the system's video of a clip; it may be missing. An error of the package is a failure of
            this clip.

    Raises:
        OutputError: the folder cannot be written.
    """
    _make_folders(folder)
    tasks = []
    for clip in manifest.clips:
        stored = folder / f"{clip.id}.json"
        try:
            path = video_of(clip)
        except TalkingHeadError as error:
            stored.with_suffix(".safetensors").unlink(missing_ok=True)
            write_json(stored, {"made_from": None, "score": Score.failed(clip, str(error)).to_json()})
        else:
            tasks.append(ScoreTask((stored,), clip, (clip,), path, manifest.cartoon))
    return tasks


def bound_tasks(real: Path, wrong: Path, manifest: Manifest) -> list[ScoreTask]:
    """The real videos, each to be scored with its own recording and with another one, decoded once for both.

    Args:
        real, wrong: folders of the scores.
        manifest: the clips.

    Raises:
        OutputError: a folder cannot be written.
    """
    _make_folders(real, wrong)
    clips = {clip.id: clip for clip in manifest.clips}
    return [
        ScoreTask(
            (real / f"{clip.id}.json", wrong / f"{clip.id}.json"),
            clip,
            (clip, clips[clip.other]),
            clip.video,
            manifest.cartoon,
        )
        for clip in manifest.clips
    ]


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        with output_errors("the folder of the scores cannot be created", folder):
            folder.mkdir(parents=True, exist_ok=True)


def score_clip(clip: Clip, heard: Sequence[Clip], path: Path, cartoon: bool) -> list[Score]:
    """Score one video of a clip; a video that is missing, damaged or too short gives failures.

    Args:
        clip: what the video should show.
        heard: the clips whose recordings it is scored with: the same one, or a wrong one.
        path: the video, which starts with the clip; or the clip's own file.
        cartoon: whether the presenters are those of the bundled model.
    """
    if not path.is_file():
        return [Score.failed(clip, f"no file {path.name}")] * len(heard)
    try:
        is_real = path == clip.video
        frames = FeatureTaker(clip.frames)
        mouths = MouthReader() if cartoon else None
        shown = DrivingVideo(path).frames(clip.start if is_real else 0.0, clip.frames)
        judged = judge_frames(
            frames.watch(np.array(picture) for picture in shown),
            _subject(clip),
            [_heard(each, clip.seconds) for each in heard],
            mouths,
            presenter_features if cartoon else None,
            path if _is_whole(path, clip, is_real) else None,
        )
    except TalkingHeadError as error:
        return [Score.failed(clip, str(error))] * len(heard)
    if frames.count < (1 - LONGEST_GAP) * clip.frames:
        return [Score.failed(clip, f"too short: {frames.count} of {clip.frames} frames")] * len(heard)
    compared = [{each.name: each for each in measures if each.name in COMPARED} for measures in judged]
    drawn = drawn_features(mouths.components(), clip.frames) if mouths else {}
    features = frames.features() | drawn
    return [Score(clip.id, clip.identity, measures, None, given_digests(), features) for measures in compared]


def _subject(clip: Clip) -> Subject:
    return Subject(
        portrait=reference_picture(clip),
        speech=np.zeros(0, np.float32),  # only checks of a finished run look at it
        frame_count=clip.frames,
        seconds=clip.seconds,
    )


def _heard(clip: Clip, seconds: float) -> Heard:
    soundtrack = audio.read_soundtrack(clip.video, start=clip.start)
    return Heard(soundtrack[:, : round(seconds * audio.SOUNDTRACK_RATE)], mouth_truth(clip))


def _is_whole(path: Path, clip: Clip, is_real: bool) -> bool:
    """Whether the decoded frames are all frames of the file."""
    facts = video.probe(path)
    return not (is_real and clip.start) and facts.frame_count == round(
        facts.duration_seconds * FRAMES_PER_SECOND
    )


def presenter_features(frames: Tensor) -> Tensor:
    """[1, 3, H, W] in [−1, 1] → [1, 1, channels], for `identity` of cartoon presenters."""
    return presenter_appearance(frames)[:, None]


def write_json(path: Path, content: Any) -> None:
    """Replace a file.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """Read a file of `write_json`.

    Raises:
        OutputError: it is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"a file of the benchmark cannot be read ({error})", received=str(path), remedy="Remove it."
        ) from None
