"""The list of clips that a benchmark scores: which files, which part of each, and who is seen in them."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.foundation.field_errors import Contradiction, first_error
from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.foundation.parameter_text import read_mapping
from talkinghead_lab.media.reference import DrivingVideo
from talkinghead_lab.media.video import probe

VERSION = 2  # 2 added `folder` and `maker`
SMALL_PEOPLE, SMALL_SECONDS = 4, 1.0  # of a quick check
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
IDENTITY = r"(.+?)(?:_\d+)?"  # a name without the number at its end
# How datasets name their clips; the first group is the person, or the source video where no more is known.
DATASETS = {
    "hdtf": r"((?:RD|WDA|WRA)_.+)_\d+",  # by speaker, counted: WDA_BarackObama_000 (github.com/MRzzm/HDTF)
    "celebv-hq": r"(.{11})_\d+",  # by YouTube's id, counted: M2Ohb0FAaJU_1 (github.com/CelebV-HQ/CelebV-HQ)
    "emtd": r"(.{11})-Scene-\d+",  # by YouTube's id, as PySceneDetect splits it (antgroup/echomimic_v2)
}


class Clip(BaseModel):
    """A span of a real video of one person who speaks.

    A system gets the frame at `start` as its portrait and the clip's own recording from `start` on. The real
    span is what its video is compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(pattern=r"^[\w.-]+$", description="name of the clip, and of every system's video of it")
    video: Path = Field(description="file of the real video")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the file")
    start: float = Field(0.0, ge=0, description="first second of the span")
    seconds: float = Field(gt=0, le=600, description="length of the span")
    identity: str = Field(min_length=1, description="who is seen; clips of one person are not independent")
    other: str = Field(description="id of the clip whose recording is the wrong one for this clip")
    truth: Path | None = Field(
        None, description="JSON list: the true opening of the mouth, 25 values per second, 0 shut … 1 wide"
    )

    @property
    def end(self) -> float:
        """Where the span ends, in seconds."""
        return self.start + self.seconds

    @property
    def frames(self) -> int:
        """Frames of the span, at 25 per second."""
        return max(1, round(self.seconds * FRAMES_PER_SECOND))


class Maker(BaseModel):
    """Clips that a manifest does not list, because anyone draws the same ones from these seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["drawn"] = Field(
        description="drawn presenters of the test split, with the truth of every mouth"
    )
    identities: int = Field(40, ge=2, le=100_000, description="presenters, from number 0 on")
    clips_each: int = Field(1, ge=1, le=1000, description="clips of each presenter")
    seconds: float = Field(4.0, ge=0.04, le=10, description="length of every clip")
    seed: int = Field(1, ge=0, description="of sentences, voices and motion")
    digest: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of the clips as its author drew them; a warning tells others",
    )


class Manifest(BaseModel):
    """A named list of clips.

    Raises:
        InvalidRequest: a field is not valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(VERSION, ge=1, le=VERSION, description="version of the format")
    name: str = Field(min_length=1, description="of the benchmark")
    cartoon: bool = Field(False, description="cartoon presenters, as the bundled model draws them")
    folder: Path | None = Field(None, description="what paths are relative to; unset: the manifest's folder")
    maker: Maker | None = Field(None, description="makes the clips on first use")
    clips: tuple[Clip, ...] = Field((), description="the clips, in order")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise first_error(error, type(self).model_fields) from None

    @model_validator(mode="after")
    def _clips_are_known(self) -> Self:
        if (self.maker is None) != (len(self.clips) >= 2) or (self.maker and self.clips):
            raise Contradiction("a manifest has two clips or more, or a `maker` and no clips", "clips")
        identities: dict[str, str] = {}
        for clip in self.clips:
            if clip.id in identities:
                raise Contradiction(f"two clips have the id {clip.id}; one is {clip.video}", "clips")
            identities[clip.id] = clip.identity
        for clip in self.clips:
            if clip.other not in identities or clip.other == clip.id:
                raise Contradiction(
                    f"`other` of the clip {clip.id} must be another clip, received {clip.other!r}", "clips"
                )
        return self

    @classmethod
    def from_yaml(cls, path: Path, folder: Path | None = None) -> Self:
        """Read a manifest.

        Args:
            path: YAML file.
            folder: what its paths are relative to; None: its own `folder`, otherwise the one it lies in.

        Raises:
            InvalidRequest: the file or a field is not valid.
        """
        manifest = cls(**read_mapping(path, "the manifest"))
        folder = path.resolve().parent / (folder.resolve() if folder else manifest.folder or "")
        clips = [
            clip.model_copy(
                update={"video": folder / clip.video, "truth": clip.truth and folder / clip.truth}
            )
            for clip in manifest.clips
        ]
        return manifest.model_copy(update={"clips": tuple(clips), "folder": None})

    def write(self, path: Path) -> None:
        """Write a manifest. Paths are relative to its folder, or to `folder` where clips lie elsewhere.

        Raises:
            OutputError: the file cannot be written, or exists.
        """
        folder = path.resolve().parent
        content = self.model_dump(mode="json", exclude_defaults=True) | {"version": VERSION}
        videos = [clip.video.resolve() for clip in self.clips]
        if not all(video.is_relative_to(folder) for video in videos):
            folder = Path(os.path.commonpath([video.parent for video in videos]))
            content["folder"] = str(folder)
        for clip in content.get("clips", ()):
            for name in ("video", "truth"):
                if clip.get(name):
                    clip[name] = Path(clip[name]).resolve().relative_to(folder).as_posix()
        ordered = {name: content[name] for name in type(self).model_fields if name in content}
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True), "utf-8")

    def reduced(self) -> Self:
        """A quick check: at most four people, and one clip of each, of at most a second."""
        name = f"{self.name}-small"
        if self.maker is not None:
            people, seconds = (
                min(self.maker.identities, SMALL_PEOPLE),
                min(self.maker.seconds, SMALL_SECONDS),
            )
            less = {"identities": people, "clips_each": 1, "seconds": seconds, "digest": None}
            return self.model_copy(update={"name": name, "maker": self.maker.model_copy(update=less)})
        firsts = {clip.identity: clip for clip in reversed(self.clips)}
        kept = [clip for clip in self.clips if firsts[clip.identity] is clip][:SMALL_PEOPLE]
        clips = [
            clip.model_copy(update={"seconds": min(clip.seconds, SMALL_SECONDS), "other": other.id})
            for clip, other in zip(kept, [*kept[1:], kept[0]], strict=True)
        ]
        return self.model_copy(update={"name": name, "clips": tuple(clips)})

    def check(self) -> None:
        """Compare every file with its digest, and every span with the pictures and the sound of its file.

        Raises:
            MediaError: a file is missing, differs or has less than its span; all of them are named.
        """
        wrong = [f"{clip.id}: {problem}" for clip in self.clips if (problem := _problem(clip))]
        if wrong:
            raise MediaError(
                "clips of the benchmark are missing or differ from the manifest",
                received="; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""),
                remedy="Get these files again. A benchmark of other files is another benchmark.",
            )
        short = [f"{clip.id}: {lack}" for clip in self.clips if (lack := _lack(clip.video, clip.end))]
        if short:
            raise MediaError(
                "clips of the benchmark end before their spans",
                received="; ".join(short[:10]) + (f"; and {len(short) - 10} more" if len(short) > 10 else ""),
                remedy="Change `start` or `seconds` of these clips, or leave them out: no system has a score "
                "there.",
            )


def mouth_truth(clip: Clip) -> NDArray[np.float64] | None:
    """The true opening of the mouth in the span, [F]; None: not known."""
    return None if clip.truth is None else np.asarray(json.loads(clip.truth.read_text("utf-8")), float)


def reference_picture(clip: Clip) -> Image.Image:
    """The portrait that every system gets: the frame at the start of the span."""
    return DrivingVideo(clip.video).frame_at(clip.start)


def from_folder(
    folder: Path, name: str, seconds: float, identity: str = IDENTITY, cartoon: bool = False
) -> Manifest:
    """A manifest of all videos below a folder: the first `seconds` of each.

    Args:
        folder: with the videos.
        name: of the benchmark.
        seconds: length of the spans.
        identity: regular expression that matches a file's whole name, without its suffix; its first group is
            the person. DATASETS has those of published datasets.
        cartoon: whether the presenters are those of the bundled model.

    Raises:
        InvalidRequest: `identity` is not valid or does not match a name, or all clips show one person.
        MediaError: there are no videos, or one is shorter than `seconds`.
    """
    found = []
    videos = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    for path in sorted(path for path in videos if not path.name.startswith(".")):
        if lack := _lack(path, seconds):
            raise MediaError(
                "a clip is too short",
                received=lack,
                allowed=f"{seconds:g} s or more",
                remedy="Choose fewer seconds, or move the file out of the folder.",
            )
        truth = path.with_suffix(".truth.json")
        fields = {
            "id": re.sub(r"[^\w.-]", "_", path.relative_to(folder).with_suffix("").as_posix()),
            "video": path,
            "sha256": known_sha256(path),
            "seconds": seconds,
            "identity": _person(path.stem, identity),
        }
        found.append(fields | ({"truth": truth} if truth.is_file() else {}))
    if len(found) < 2:
        raise MediaError("a benchmark needs two videos or more", received=f"{len(found)} in {folder}")
    for fields, other in zip(found, _others([str(fields["identity"]) for fields in found]), strict=True):
        fields["other"] = found[other]["id"]
    return Manifest(name=name, cartoon=cartoon, clips=found)


def _person(stem: str, identity: str) -> str:
    try:
        match = re.fullmatch(identity, stem)
    except re.error as error:
        raise InvalidRequest("not a regular expression", received=f"{identity} ({error})") from None
    if not match or not match.groups() or not match[1]:
        raise InvalidRequest(
            "the regular expression of the identities does not tell who is seen",
            received=f"{identity!r} for the file {stem!r}",
            remedy="Its first group is the person: '(.+?)_.*'.",
        )
    return match[1]


def _others(identities: list[str]) -> Iterator[int]:
    """For each clip the number of another person's: half the list further, or the next one after that."""
    count = len(identities)
    if len(set(identities)) == 1:
        raise InvalidRequest(
            "all clips show one person, so there is nothing to compare between people",
            received=identities[0],
            remedy="Give --identity, a regular expression whose first group is the person.",
        )
    for number, identity in enumerate(identities):
        further = ((number + count // 2 + step) % count for step in range(count))
        yield next(other for other in further if identities[other] != identity)


def _lack(path: Path, seconds: float) -> str | None:
    """What a video has, if pictures or sound end before a time."""
    facts = probe(path)
    if min(facts.duration_seconds, facts.audio_seconds) >= seconds - 1 / FRAMES_PER_SECOND:
        return None
    return f"{path}: {facts.duration_seconds:.2f} s of pictures, {facts.audio_seconds:.2f} s of sound"


def _problem(clip: Clip) -> str | None:
    if not clip.video.is_file():
        return f"no file {clip.video}"
    found = known_sha256(clip.video)
    return (
        None
        if found == clip.sha256
        else f"{clip.video} has the digest {found[:12]}…, not {clip.sha256[:12]}…"
    )
