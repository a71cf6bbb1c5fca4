"""The media of a request, read once."""

from dataclasses import dataclass

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media import audio
from talkinghead_lab.media.frame_size import nearest_size
from talkinghead_lab.media.reference import ReferenceMedia, open_reference
from talkinghead_lab.params import GenerationParams


@dataclass(frozen=True)
class Inputs:
    """The media of a request, read: the picture or video, (W, H) of the frames, a 16 kHz wave per speaker."""

    source: ReferenceMedia
    frame_size: tuple[int, int]
    voices: tuple[audio.Wave, ...]

    @property
    def seconds(self) -> float:
        """How long the recordings last."""
        return len(self.voices[0]) / audio.SAMPLE_RATE


def read_inputs(params: GenerationParams) -> Inputs:
    """Open what a request names; no network is needed, so mistakes show before weights are loaded.

    Raises:
        MediaError: a file is missing or cannot be used.
    """
    source = open_reference(local_file(params.image_path))
    size = params.forced_size or nearest_size(*source.size, params.resolution)
    voices: tuple[audio.Wave, ...] = (audio.read_speech(local_file(params.audio_path)),)
    if params.second_audio_path is not None:
        second = audio.read_speech(local_file(params.second_audio_path))
        voices = audio.mix_speakers(voices[0], second, params.audio_mix)
    return Inputs(source, size, voices)


def read_sound(params: GenerationParams) -> audio.Wave:
    """The sound track of a request's video, [channels, samples] at 48 kHz."""
    sound = audio.read_soundtrack(local_file(params.audio_path))
    if params.second_audio_path is None:
        return sound
    return audio.mix_soundtracks(
        sound, audio.read_soundtrack(local_file(params.second_audio_path)), params.audio_mix
    )
