"""The media of a request, read once and checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.foundation.digests import known_sha256
from talkinghead_lab.media import audio
from talkinghead_lab.media.frame_size import nearest_size
from talkinghead_lab.media.reference import ReferenceMedia, open_reference


@dataclass(frozen=True)
class Inputs:
    """Pictures and sound of one run.

    Args:
        reference: the portrait, or the driving video.
        frame_size: (W, H) of the frames.
        voices: a 16 kHz mono wave per speaker, equally long.
        soundtrack: of the video, [1 or 2 channels, samples] at 48 kHz.
        sha256: digests of the files: the picture's, then each recording's.
        warnings: what the user should know about the media before anything is generated.
    """

    reference: ReferenceMedia
    frame_size: tuple[int, int]
    voices: tuple[audio.Wave, ...]
    soundtrack: audio.Wave
    sha256: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        picture: Path,
        recordings: Sequence[Path],
        mix: audio.Mix,
        resolution: str,
        frame_size: tuple[int, int] | None = None,
        audio_track: int | None = None,
        audio_start: float = 0.0,
        background: str = "white",
    ) -> "Inputs":
        """Open and read the media of one or two speakers; each recording is opened once.

        Args:
            picture: portrait or driving video.
            recordings: one per speaker.
            mix: how two recordings share the time line.
            resolution: family of released frame sizes; the one nearest to the picture's shape is chosen.
            frame_size: (W, H) instead of a released one.
            audio_track: sound track of the first recording, from 1; None: the default one.
            audio_start: seconds to skip in the first recording.
            background: colour behind transparent pixels of the picture.

        Raises:
            MediaError: a file cannot be used.
        """
        reference = open_reference(picture, background)
        size = frame_size or nearest_size(*reference.size, resolution)
        first = audio.read_recording(recordings[0], audio_track, audio_start)
        others = [audio.read_recording(path) for path in recordings[1:]]
        voices: tuple[audio.Wave, ...] = (first.speech,)
        soundtrack = first.soundtrack
        for second in others:
            voices = audio.mix_speakers(first.speech, second.speech, mix)
            soundtrack = audio.mix_soundtracks(first.soundtrack, second.soundtrack, mix)
        digests = (known_sha256(picture), first.sha256, *(second.sha256 for second in others))
        return cls(reference, size, voices, soundtrack, digests)

    @property
    def seconds(self) -> float:
        """Length of the recordings in seconds."""
        return len(self.voices[0]) / audio.SAMPLE_RATE
