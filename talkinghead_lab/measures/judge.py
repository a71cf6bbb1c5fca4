"""Judges a finished video: every measure and check, from one decoding pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from talkinghead_lab.errors import MediaError, TalkingHeadError
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures import lips
from talkinghead_lab.measures.active_speaker import PeopleReader, Person, not_taken
from talkinghead_lab.measures.cartoon_faces import MouthReader
from talkinghead_lab.measures.checks import StillnessMeter, check_video
from talkinghead_lab.measures.clip_quality import clip_quality
from talkinghead_lab.measures.csim import csim
from talkinghead_lab.measures.frames import FrameStatistics, frame_measures, seam_jump
from talkinghead_lab.measures.given_weights import SYNCNET
from talkinghead_lab.measures.head_motion import head_motion
from talkinghead_lab.measures.identity import Features, identity_measures
from talkinghead_lab.measures.loudness import loudness
from talkinghead_lab.measures.measure import Measure
from talkinghead_lab.measures.photographed_faces import Faces, FaceTracker
from talkinghead_lab.measures.syncnet_faces import FaceFinder
from talkinghead_lab.measures.syncnet_scores import SyncedLips, sync_scores
from talkinghead_lab.media import audio, video

LONGEST_READ = 2000  # frames whose mouths count; of longer videos the first ones
FRAMES_FOR_IDENTITY = 8
NO_SOUND = "the video has no sound"


@dataclass(frozen=True)
class Subject:
    """What a video was made from, and what it should be.

    Args:
        portrait: the reference image at the start.
        later: those of later shots, by the number of the frame at which each begins, in order.
        speech: what is heard, mono at 16 kHz.
        frame_count: frames that the video should have.
        seconds: length that it should have.
        truth: the true opening of the mouth in every frame, 0 shut … 1 wide; None: not known.
        seams: numbers of the frames that start a new chunk.
        changes: how much the luma of each frame but the first differs from the frame before, before encoding
            (`LumaChanges`); None: not known.
        speakers: 1 or 2.
        people: with two speakers, who and where they are.
        cartoon: whether the bundled model made it, whose cartoon presenters the mouth reader knows.
        warnings: what was said about the request before the video was made.
    """

    portrait: Image.Image
    speech: audio.Wave
    frame_count: int
    seconds: float
    truth: lips.Openings | None = None
    seams: Sequence[int] = ()
    changes: Sequence[float] | None = None
    speakers: int = 1
    people: Sequence[Person] = ()
    cartoon: bool = False
    warnings: Sequence[str] = ()
    later: Mapping[int, Image.Image] = field(default_factory=dict)

    def portrait_at(self, number: int) -> Image.Image:
        """The reference image of a frame."""
        return [self.portrait, *(each for start, each in self.later.items() if start <= number)][-1]


@dataclass(frozen=True)
class Heard:
    """A recording that the lips are compared with.

    Args:
        sound: as `audio.read_soundtrack` gives it; None: the video has no sound.
        truth: the true opening of the mouth that it belongs to, as in `Subject`.
    """

    sound: audio.Wave | None
    truth: lips.Openings | None


@dataclass(frozen=True)
class Judgement:
    """Everything learned about a video.

    Args:
        measures: one of each kind but those of cost.
        checks: of `checks.check_video`.
        snapshots: (seconds, frame), evenly spaced.
        facts: of the file.
    """

    measures: list[Measure]
    checks: dict[str, Any]
    snapshots: list[tuple[float, Image.Image]]
    facts: video.VideoFacts


def judge_video(
    path: str | Path,
    subject: Subject,
    features: Features | None = None,
    snapshots: int = 0,
    on_frame: Callable[[], None] = lambda: None,
) -> Judgement:
    """Decode a finished video once and take every measure that it allows; the others report the reason.

    Only SyncNet's scores, where the user has its weights, decode the pictures again.

    Args:
        path: the video.
        subject: what it was made from.
        features: an image encoder, [1, 3, H, W] in [−1, 1] → [1, tokens, channels], for `identity`.
        snapshots: how many frames to return.
        on_frame: called after every frame.

    Raises:
        MediaError: the video is damaged.
    """
    facts = video.probe(path)
    mouths = MouthReader() if subject.cartoon and subject.speakers == 1 else None
    viewing = _Viewing(path, subject, facts.frame_count, snapshots, mouths)

    def add(pixels: video.Frames) -> None:
        viewing.add(pixels)
        on_frame()

    soundtrack = video.decode_once(path, add)
    openings = viewing.mouths.openings() if viewing.mouths else None
    measures = [
        *_heard_measures(viewing, Heard(soundtrack, subject.truth)),
        *_seen_measures(subject, viewing, features),
    ]
    checks = check_video(
        facts,
        viewing.meter,
        subject.frame_count,
        subject.seconds,
        openings,
        subject.speech,
        subject.warnings,
    )
    shown = [(number / FRAMES_PER_SECOND, viewing.kept[number]) for number in viewing.snapshot_numbers]
    return Judgement(measures, checks, shown, facts)


def judge_frames(
    frames: Iterable[video.Frames],
    subject: Subject,
    heard: Sequence[Heard],
    mouths: MouthReader | None,
    features: Features | None = None,
    path: Path | None = None,
) -> list[list[Measure]]:
    """Take every measure of a span of a video, whose frames somebody else decodes, for each recording.

    Args:
        frames: uint8 [H, W, 3] each, 25 per second.
        subject: what the span should be.
        heard: the recordings that lips and sound are measured with, one after another.
        mouths: a new reader of cartoon presenters, which has seen all frames afterwards; None: the people
            are photographed.
        features: an image encoder, as for `judge_video`.
        path: the file, if the frames are all of its frames; SyncNet's scores decode it again.
    """
    viewing = _Viewing(path, subject, subject.frame_count, 0, mouths)
    for pixels in frames:
        viewing.add(pixels)
    seen = _seen_measures(subject, viewing, features)
    return [_heard_measures(viewing, each) + seen for each in heard]


def _heard_measures(viewing: "_Viewing", heard: Heard) -> list[Measure]:
    """Those of lips and sound, and of the sound alone."""
    sound = heard.sound
    return [
        *_lip_measures(viewing, heard),
        *_sync_measures(viewing, sound),
        Measure.of("loudness", None, NO_SOUND) if sound is None else loudness(sound),
    ]


def _seen_measures(subject: Subject, viewing: "_Viewing", features: Features | None) -> list[Measure]:
    """Those that no recording but the subject's own changes."""
    faces, cuts = viewing.faces, list(subject.later)
    pictures = {number: viewing.kept[number] for number in viewing.identity_numbers if number in viewing.kept}
    portraits = [subject.portrait_at(number) for number in pictures]
    no_csim = "the video has several shots" if cuts else viewing.no_faces
    poses = viewing.mouths.pose() if viewing.mouths else faces.pose if faces else None
    return [
        *(viewing.people.measures() if viewing.people else not_taken()),
        *identity_measures(portraits, list(pictures.values()), features),
        csim(subject.portrait, pictures, faces) if faces and not cuts else Measure.of("csim", None, no_csim),
        seam_jump(subject.changes, subject.seams, cuts),
        *frame_measures(viewing.statistics, cuts),
        clip_quality(list(pictures.values())),
        head_motion(poses) if poses is not None else Measure.of("head_motion", None, viewing.no_faces),
    ]


class _Viewing:
    """Everything that looks at the frames while they are decoded."""

    def __init__(
        self,
        path: str | Path | None,
        subject: Subject,
        frame_count: int,
        snapshots: int,
        mouths: MouthReader | None,
    ) -> None:
        self.path, self.mouths = path, mouths
        self.statistics, self.meter = FrameStatistics(), StillnessMeter()
        self.tracker: FaceTracker | None = None
        self.no_faces = "there are two people, and the readers follow one"
        self.finder: FaceFinder | None = None
        self.no_track = self.no_faces
        if subject.speakers == 1:
            try:
                self.tracker = FaceTracker(LONGEST_READ)
            except TalkingHeadError as error:
                self.no_faces = f"no reader of photographed faces: {error}"
            try:
                SYNCNET.path()  # without it, nobody needs the faces
                self.finder = FaceFinder(LONGEST_READ)
            except TalkingHeadError as error:
                self.no_track = str(error)
        people = subject.people
        self.people = PeopleReader(people, subject.cartoon, LONGEST_READ) if people else None
        self.identity_numbers = video.evenly_spaced_numbers(frame_count, FRAMES_FOR_IDENTITY)
        self.snapshot_numbers = video.evenly_spaced_numbers(frame_count, snapshots) if snapshots else []
        self.kept: dict[int, Image.Image] = {}
        self._wanted = {*self.identity_numbers, *self.snapshot_numbers}

    def add(self, pixels: video.Frames) -> None:
        number = self.meter.frames
        for each in (self.statistics, self.meter, self.mouths, self.tracker, self.finder, self.people):
            if each is not None:
                each.add(pixels)
        if number in self._wanted:
            self.kept[number] = Image.fromarray(pixels)

    @cached_property
    def faces(self) -> Faces | None:
        """The photographed faces; None, with the reason in `no_faces`, where none were followed."""
        try:
            return self.tracker.faces() if self.tracker else None
        except MediaError as error:
            self.no_faces = f"the reader of photographed faces follows none: {error}"
            return None

    @cached_property
    def synced_lips(self) -> SyncedLips:
        """The lips as SyncNet sees them.

        Raises:
            MediaError, CheckpointError: as for `FaceFinder.track` and `SyncedLips.read`.
        """
        assert self.finder is not None
        assert self.path is not None
        return SyncedLips.read(self.path, self.finder.track())


def _lip_measures(viewing: _Viewing, heard: Heard) -> list[Measure]:
    cartoon = viewing.mouths.openings() if viewing.mouths else None
    faces, soundtrack = viewing.faces, heard.sound
    openings = cartoon if cartoon is not None else faces.opening if faces else None
    if openings is None:
        names = ("lip_correlation", "lip_error", "mouth_follows_sound", "silent_lip_motion")
        found = [Measure.of(name, None, viewing.no_faces) for name in names]
    else:
        openings = openings[:LONGEST_READ]
        no_size = "only a cartoon mouth's opening has a true size"
        found = [
            lips.lip_correlation(openings, heard.truth),
            lips.lip_error(openings, heard.truth)
            if cartoon is not None
            else Measure.of("lip_error", None, no_size),
            *(
                [Measure.of(name, None, NO_SOUND) for name in ("mouth_follows_sound", "silent_lip_motion")]
                if soundtrack is None
                else [
                    lips.mouth_follows_sound(openings, soundtrack),
                    lips.silent_lip_motion(openings, soundtrack),
                ]
            ),
        ]
    return found


def _sync_measures(viewing: _Viewing, soundtrack: audio.Wave | None) -> list[Measure]:
    reason = viewing.no_track
    if viewing.finder is not None and soundtrack is None:
        reason = NO_SOUND
    elif viewing.finder is not None and viewing.path is None:
        reason = "SyncNet's scores take whole files with 25 frames per second"
    elif viewing.finder is not None and soundtrack is not None:
        try:
            scores = sync_scores(viewing.synced_lips, soundtrack)
            return [Measure.of("lse_c", scores.confidence), Measure.of("lse_d", scores.distance)]
        except TalkingHeadError as error:
            reason = str(error)
    return [Measure.of(name, None, reason) for name in ("lse_c", "lse_d")]
