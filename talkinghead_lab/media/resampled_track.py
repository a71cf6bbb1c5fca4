"""A sound track at another sample rate, filled frame by frame while a file is decoded."""

import math
from collections import deque
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.error import ArgumentError
from numpy.typing import NDArray

from talkinghead_lab.errors import MediaError

# Upsampling multiplies the samples: below this rate, a small file would fill the memory.
LOWEST_RATE = 1000
# The length of the resampling filter grows with the rate, up to half a minute of work for one packet. FFmpeg
# decodes DSD1024, the fastest that there is, at 5,644,800 Hz.
HIGHEST_RATE = 6_000_000
# Full scale is 1. Floating-point files hold larger samples; sums and squares of these stay finite.
LARGEST_SAMPLE = 1e12
# Share of the energy which the mean of unrelated channels has. A mean with less is one of channels in
# opposite phase: two equally loud ones whose correlation is below −0.75. Bands of speech are judged one by
# one, since a low hum or noise may be in phase where the voice is not; quiet bands do not count.
CANCELLATION = 0.25
BANDS = (100, 500, 1500, 4000)  # Hz: the pitch and its harmonics, vowels, consonants
QUIET_BAND = 0.01  # share of the energy of all bands
BLOCK = 1 << 16  # samples that are analysed at a time

LONGEST_GAP = 1  # second of silence inside a part

Wave = NDArray[np.float32]


class ResampledTrack:
    """A sound track at another sample rate; more than two channels become stereo, as FFmpeg mixes them.

    Consecutive frames of one sample rate and number of channels are resampled with soxr HQ as one part, as
    `librosa.load` does. Each part is placed at its own time, and between parts there is silence. So is a
    short gap inside a part: starting a part takes longer than resampling silence.

    Args:
        rate: samples per second of the result.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._parts: list[_Part] = []
        self._converter: AudioResampler | None = None
        self._converts: tuple[object, ...] = ()

    def add(self, frame: AudioFrame, start: Fraction, path: Path) -> None:
        """Add a decoded frame that starts at `start` seconds, not before the end of the last one.

        Raises:
            MediaError: samples that are NaN or infinity, or an unusable sample rate.
        """
        rate = frame.sample_rate
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise MediaError(
                f"the recording's sample rate is too {'low' if rate < LOWEST_RATE else 'high'}",
                received=f"{path}, {rate} Hz",
                allowed=f"{LOWEST_RATE} to {HIGHEST_RATE} Hz",
            )
        for samples in self._packed(frame):
            if not np.abs(samples).max(initial=0) < LARGEST_SAMPLE:  # not: NaN compares as false
                end = float(start) + len(samples) / rate
                raise MediaError(
                    f"the recording contains NaN or infinity before {end:.2f} s",
                    received=str(path),
                    allowed=f"samples up to {LARGEST_SAMPLE:g} times full scale",
                    remedy="Export it again, for example as 16-bit wav.",
                )
            block = self._mixed(np.ascontiguousarray(samples.T), rate)
            gap = self._parts[-1].gap(start, rate, len(block)) if self._parts else None
            if gap is None:
                self._parts.append(_Part(start, rate, len(block), self.rate))
            elif gap:
                block = np.pad(block, ((0, 0), (gap, 0)))
            self._parts[-1].add(block)

    def wave(self) -> Wave:
        """Finish: [channels, ceil(seconds · rate)], stereo if any part is; frees the parts."""
        length = math.ceil(self._parts[-1].end * self.rate)
        wave = np.zeros((max(part.channels for part in self._parts), length), np.float32)
        for part in self._parts:
            part.write(wave)  # mono parts go to both channels
        return wave

    def _packed(self, frame: AudioFrame) -> list[Wave]:
        """Samples [n, channels]; PyAV reads wild pointers behind the eighth plane of planar ones."""
        received = (frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)
        if self._converter is None or received != self._converts:
            self._converter = AudioResampler(format="flt", layout=self._layout(frame.layout))
            self._converts = received
        try:
            parts = self._converter.resample(frame)
        except ArgumentError:  # FFmpeg knows no positions, as of ambisonic channels
            self._converter = AudioResampler(format="flt")
            parts = self._converter.resample(frame)
        return [cast(Wave, part.to_ndarray()).reshape(-1, part.layout.nb_channels) for part in parts]

    def _layout(self, layout: AudioLayout) -> str | None:
        """What FFmpeg mixes a layout to; None: all channels are kept, for `_mixed`."""
        # FFmpeg would guess the positions of a layout that only counts its channels, and drop the one in the
        # place of the bass channel.
        count = layout.nb_channels
        return "stereo" if count > 2 and layout.name != f"{count} channels" else None

    def _mixed(self, block: Wave, rate: int) -> Wave:
        return block if len(block) <= 2 else np.stack([block.mean(axis=0)] * 2)


class MonoTrack(ResampledTrack):
    """A sound track that is mixed to one channel: the mean of all.

    Args:
        rate: see `ResampledTrack`.
        chosen: the channel to take instead of the mean, by number of channels.
    """

    def __init__(self, rate: int, chosen: Mapping[int, int] | None = None) -> None:
        super().__init__(rate)
        self._chosen = chosen or {}
        self._energies: dict[int, NDArray[np.float64]] = {}  # by band, of each channel and of their mean

    @property
    def loudest(self) -> dict[int, int]:
        """The loudest channel by number of channels, where the channels cancel each other in their mean."""
        return {
            channels: _loudest(energies) for channels, energies in self._energies.items() if _cancel(energies)
        }

    def _layout(self, layout: AudioLayout) -> str | None:
        return None

    def _mixed(self, block: Wave, rate: int) -> Wave:
        if len(block) in self._chosen:
            channel = self._chosen[len(block)]
            return block[channel : channel + 1]
        mean: Wave = block.mean(axis=0, keepdims=True)
        if len(block) > 1:
            self._energies[len(block)] = self._energies.get(len(block), 0.0) + _energies(block, mean, rate)
        return mean


def to_mono(wave: Wave, rate: int) -> Wave:
    """Mix [channels, samples] to [samples]: the mean, or the loudest channel if they cancel each other."""
    mean: Wave = wave.mean(axis=0, keepdims=True)
    energies = _energies(wave, mean, rate)
    return cast(Wave, wave[_loudest(energies)] if _cancel(energies) else mean[0])


def _energies(wave: Wave, mean: Wave, rate: int) -> NDArray[np.float64]:
    """Energies of each channel, and in the last column of their mean, [BANDS - 1, channels + 1]."""
    total = np.zeros((len(BANDS) - 1, len(wave) + 1))
    for start in range(0, wave.shape[1], BLOCK):
        block = np.concatenate([part[:, start : start + BLOCK] for part in (wave, mean)])
        power = np.abs(np.fft.rfft(block)) ** 2
        edges = [round(edge * block.shape[1] / rate) for edge in BANDS]
        total += [power[:, low:high].sum(axis=1) for low, high in pairwise(edges)]
    return total


def _loudest(energies: NDArray[np.float64]) -> int:
    return int(energies[:, :-1].sum(axis=0).argmax())


def _cancel(energies: NDArray[np.float64]) -> bool:
    channels, mean = energies[:, :-1].sum(axis=1), energies[:, -1]
    lost = mean < CANCELLATION * channels / (energies.shape[1] - 1) ** 2
    return bool((lost & (channels > QUIET_BAND * channels.sum())).any())


class _Part:
    """Consecutive samples of one rate and number of channels, resampled to `to`."""

    def __init__(self, start: Fraction, rate: int, channels: int, to: int) -> None:
        self.start, self.rate, self.channels, self.to, self.samples = start, rate, channels, to, 0
        self._stream = soxr.ResampleStream(rate, to, channels, dtype="float32", quality="HQ")
        self._first, self._blocks = float(start), deque[Wave]()

    @property
    def end(self) -> Fraction:
        """Seconds."""
        return self.start + Fraction(self.samples, self.rate)

    def gap(self, start: Fraction, rate: int, channels: int) -> int | None:
        """Samples of silence before such a block; None: it does not belong to this part."""
        # Floats, for speed: the result is a whole number of samples.
        gap = round((float(start) - self._first) * self.rate) - self.samples
        belongs = (rate, channels) == (self.rate, self.channels) and gap <= LONGEST_GAP * rate
        return gap if belongs else None

    def add(self, block: Wave) -> None:
        """Add [channels, samples]."""
        self.samples += block.shape[1]
        self._blocks.append(self._stream.resample_chunk(np.ascontiguousarray(block.T)))

    def write(self, wave: Wave) -> None:
        """Write the part to its place in [1 or 2 channels, samples]."""
        nothing = np.zeros((0, self.channels), np.float32)
        self._blocks.append(self._stream.resample_chunk(nothing, last=True))
        position, end = round(self.start * self.to), math.ceil(self.end * self.to)
        while self._blocks:  # free every block after it is copied: hardly anything is in memory twice
            block = self._blocks.popleft().T[:, : end - position]
            wave[:, position : position + block.shape[1]] = block
            position += block.shape[1]
