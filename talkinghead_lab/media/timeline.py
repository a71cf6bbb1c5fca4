"""What is said when: recordings of one or two speakers on the time line of a video."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from talkinghead_lab.errors import InvalidRequest, MediaTooLarge
from talkinghead_lab.foundation.field_types import Segment
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.media import audio
from talkinghead_lab.media.audio import SAMPLE_RATE, SOUNDTRACK_RATE, Recording, Wave
from talkinghead_lab.media.sound_track import MAX_SECONDS

Sound = tuple[tuple[Wave, ...], Wave, tuple[str, ...]]
AUDIBLE = 0.05  # dB; a smaller change is not told


def lay_out(
    recordings: Sequence[Recording],
    mix: audio.Mix,
    segments: Sequence[Segment] = (),
    loudness: Sequence[float] = (),
    max_seconds: float = MAX_SECONDS,
) -> Sound:
    """Lay recordings on a time line.

    Args:
        recordings: one per speaker; with `mix` timeline, one per segment.
        mix: para: all start at 0; add: the second starts when the first ends; timeline: see `segments`.
        segments: who speaks from when to when.
        loudness: of each speaker's recordings in what is heard, LUFS; empty: as they are.
        max_seconds: limit of the length.

    Returns:
        The speech of each speaker, [samples] at 16 kHz, equally long; the sum of all sound tracks,
        [channels, samples] at 48 kHz; warnings.

    Raises:
        MediaTooLarge: the time line is too long.
        InvalidRequest: a segment is longer than its recording or shorter than a video frame, or segments of
            one speaker overlap.
    """
    speakers, starts = list(range(1, 1 + len(recordings))), [0.0] * len(recordings)
    if mix == "timeline":
        spans = _spans(recordings, segments, max_seconds)
        speakers, starts = [segment.speaker for segment in segments], [start for start, _ in spans]
        recordings = [_first(part, end - start) for part, (start, end) in zip(recordings, spans, strict=True)]
    tracks = [part.soundtrack for part in recordings]
    if loudness:
        channels = max(len(track) for track in tracks)
        tracks = [
            _at(loudness[number - 1], track, channels) for number, track in zip(speakers, tracks, strict=True)
        ]
    if mix == "timeline":
        seconds = max(end for _, end in spans)
        placed = list(zip(speakers, starts, recordings, strict=True))
        voices = tuple(
            _sum([(at, part.speech) for each, at, part in placed if each == number], SAMPLE_RATE, seconds)
            for number in range(1, 1 + max(speakers))
        )
        total = _sum(list(zip(starts, tracks, strict=True)), SOUNDTRACK_RATE, seconds)
    elif len(recordings) == 1:
        voices, total = (recordings[0].speech,), tracks[0]
    else:
        voices = audio.mix_speakers(recordings[0].speech, recordings[1].speech, mix)
        first, second = audio.mix_speakers(tracks[0], tracks[1], mix)
        total = first + second  # broadcasts mono to both channels of stereo
    if not loudness:
        return voices, audio.limited(total, tracks) if len(tracks) > 1 else total, ()
    return voices, audio.limited(total, ()), _warning(total)


def overlap(spans: Sequence[tuple[float, float]]) -> tuple[int, int] | None:
    """The places of the first two spans (start, end) that overlap; None: none do."""
    order = sorted(range(len(spans)), key=lambda place: spans[place])
    pairs = ((first, second) for first, second in pairwise(order) if spans[second][0] < spans[first][1])
    return next(pairs, None)


def _spans(
    recordings: Sequence[Recording], segments: Sequence[Segment], max_seconds: float
) -> list[tuple[float, float]]:
    """Start and end of each segment in seconds."""
    spans = []
    for number, (segment, recording) in enumerate(zip(segments, recordings, strict=True), start=1):
        lasts = recording.soundtrack.shape[-1] / SOUNDTRACK_RATE
        end = segment.start + lasts if segment.end is None else segment.end
        if round((end - segment.start) * SOUNDTRACK_RATE) * FRAMES_PER_SECOND < SOUNDTRACK_RATE:
            raise InvalidRequest(
                f"segment {number} is shorter than one video frame",
                received=f"{segment.start:g} to {end:g} s",
                allowed=f"{1 / FRAMES_PER_SECOND:g} s or more",
                remedy="End it later, or leave out `end`: the segment then lasts as long as the recording.",
                field="segments",
            )
        if end - segment.start > lasts + 1 / FRAMES_PER_SECOND:
            raise InvalidRequest(
                f"segment {number} is longer than its recording",
                received=f"{end - segment.start:g} s, and {segment.file} lasts {lasts:.2f} s",
                remedy="End it earlier, or leave out `end`: the segment then lasts as long as the recording.",
                field="segments",
            )
        spans.append((segment.start, end))
    for speaker in (1, 2):
        own = [place for place, segment in enumerate(segments) if segment.speaker == speaker]
        if found := overlap([spans[place] for place in own]):
            first, second = (own[place] for place in found)
            raise InvalidRequest(
                f"segments {first + 1} and {second + 1} of speaker {speaker} overlap",
                received="{:.2f} to {:.2f} s and {:.2f} to {:.2f} s".format(*spans[first], *spans[second]),
                remedy="Let the second start later, or the first end earlier.",
                field="segments",
            )
    if (seconds := max(end for _, end in spans)) > max_seconds:
        raise MediaTooLarge(
            "the time line is too long", received=f"{seconds:.1f} s", allowed=f"up to {max_seconds:g} s"
        )
    return spans


def _first(recording: Recording, seconds: float) -> Recording:
    speech, track = round(seconds * SAMPLE_RATE), round(seconds * SOUNDTRACK_RATE)
    return Recording(recording.speech[:speech], recording.soundtrack[:, :track])


def _at(lufs: float, track: Wave, channels: int) -> Wave:
    """A track at a loudness in a video of so many channels: mono sounds from both sides of stereo."""
    heard = np.broadcast_to(track, (channels, track.shape[1]))
    return track * np.float32(audio.loudness_gain(heard.T, SOUNDTRACK_RATE, lufs))


def _sum(parts: Sequence[tuple[float, Wave]], rate: int, seconds: float) -> Wave:
    """The sum of waves [..., samples], each from its time on; mono counts for both channels of stereo."""
    channels = max((wave.shape[:-1] for _, wave in parts), default=())
    total = np.zeros((*channels, round(seconds * rate)), np.float32)
    for start, wave in parts:
        place = total[..., round(start * rate) :]
        kept = min(place.shape[-1], wave.shape[-1])
        place[..., :kept] += wave[..., :kept]
    return total


def _warning(total: Wave) -> tuple[str, ...]:
    lowered = 20 * np.log10(max(1.0, np.abs(total).max(initial=0)))
    if lowered < AUDIBLE:
        return ()
    return (
        f"With speaker_loudness, the sound would clip: it is lowered by {lowered:.1f} dB as a whole. "
        "Lower all values by as much to hear it as they say.",
    )
