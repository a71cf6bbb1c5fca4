"""Augmentation of speech, and non-speech sounds; batched, on CPU or GPU.

Waves are [B, samples], float32 at 16 kHz. The generator must be on the same device as the waves.
"""

import math

import torch
from torch import Generator, Tensor

SAMPLE_RATE = 16000
NON_SPEECH = ("silence", "hum", "tones", "noise")


def augment(wave: Tensor, generator: Generator) -> Tensor:
    """Apply band limits, room reverberation, noise and gain to random rows; timing is unchanged."""
    rows, samples = wave.shape
    size = samples + SAMPLE_RATE // 2
    spectrum = torch.fft.rfft(wave, size)
    spectrum = spectrum * _band_limits(rows, size, generator) * torch.fft.rfft(_room(rows, generator), size)
    filtered: Tensor = torch.fft.irfft(spectrum, size)[:, :samples]
    filtered = filtered + _coloured_noise(rows, samples, generator) * _noise_level(filtered, generator)
    gain = 10 ** (_uniform(rows, -16, 6, generator) / 20)
    return (filtered * gain).clamp(-1, 1)


def non_speech(rows: int, samples: int, generator: Generator) -> Tensor:
    """[rows, samples] of silence, hum, music-like tones or noise, one kind per row."""
    kind = torch.randint(len(NON_SPEECH), (rows, 1), generator=generator, device=generator.device)
    sounds = (
        1e-4 * _coloured_noise(rows, samples, generator),
        _hum(rows, samples, generator),
        _tones(rows, samples, generator),
        _coloured_noise(rows, samples, generator),
    )
    level = 10 ** (_uniform(rows, -40, -16, generator) / 20)
    wave = torch.zeros_like(level)
    for index, sound in enumerate(sounds):
        wave = wave + torch.where(kind == index, sound, 0.0)
    return (wave * level).clamp(-1, 1)


def _uniform(rows: int, low: float, high: float, generator: Generator) -> Tensor:
    share: Tensor = torch.rand(rows, 1, generator=generator, device=generator.device)
    return low + (high - low) * share


def _some(rows: int, share: float, generator: Generator) -> Tensor:
    return _uniform(rows, 0, 1, generator) < share


def _band_limits(rows: int, size: int, generator: Generator) -> Tensor:
    """[rows, bins]: soft high-pass and low-pass gains, like small speakers and telephones."""
    hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=generator.device)
    low, high = _uniform(rows, 40, 300, generator), _uniform(rows, 2800, 7500, generator)
    gain = 1 / (1 + (low / hertz.clamp_min(1)) ** 4) / (1 + (hertz / high) ** 8)
    return torch.where(_some(rows, 0.5, generator), gain, 1.0)


def _room(rows: int, generator: Generator) -> Tensor:
    """Impulse responses [rows, 0.5 s]: direct sound, then noise that decays by 60 dB in 0.1 to 0.5 s."""
    time = torch.arange(SAMPLE_RATE // 2, device=generator.device) / SAMPLE_RATE
    decay = torch.exp(-6.9 * time / _uniform(rows, 0.1, 0.5, generator))
    tail = torch.randn(rows, len(time), generator=generator, device=generator.device) * decay
    tail = tail / tail.norm(dim=1, keepdim=True) * 10 ** (_uniform(rows, -24, -6, generator) / 20)
    tail = torch.where(_some(rows, 0.5, generator), tail, 0.0)
    tail[:, 0] = 1
    return tail


def _coloured_noise(rows: int, samples: int, generator: Generator) -> Tensor:
    """Noise of unit power with a spectrum that falls by 0 to 6 dB per octave."""
    white = torch.fft.rfft(torch.randn(rows, samples, generator=generator, device=generator.device))
    bins = torch.arange(white.shape[1], device=generator.device).clamp_min(samples // 400 + 1)
    noise: Tensor = torch.fft.irfft(white * bins ** -_uniform(rows, 0, 1, generator), samples)
    return noise / noise.std(dim=1, keepdim=True)


def _noise_level(wave: Tensor, generator: Generator) -> Tensor:
    """Noise amplitude 12 to 45 dB below each row's speech, for seven rows in ten; otherwise 0."""
    rows = len(wave)
    power = wave.square().mean(1, keepdim=True).sqrt()
    level = power * 10 ** (-_uniform(rows, 12, 45, generator) / 20)
    return torch.where(_some(rows, 0.7, generator), level, 0.0)


def _hum(rows: int, samples: int, generator: Generator) -> Tensor:
    """Hum of a voice with closed lips or of the mains: six harmonics of 50 to 240 Hz."""
    time = torch.arange(samples, device=generator.device) / SAMPLE_RATE
    wobble = 0.012 * torch.sin(2 * math.pi * _uniform(rows, 0.3, 5, generator) * time)
    phase = 2 * math.pi * _uniform(rows, 50, 240, generator) * (time + wobble / 5)
    slope = _uniform(rows, 1.6, 3.0, generator)
    wave = sum(torch.sin(phase * n) / n**slope for n in range(1, 7))
    return wave * (1 + 0.3 * torch.sin(2 * math.pi * _uniform(rows, 0.1, 0.6, generator) * time))


def _tones(rows: int, samples: int, generator: Generator) -> Tensor:
    """Three-voice plucked notes of a pentatonic scale on a beat."""
    time = torch.arange(samples, device=generator.device) / SAMPLE_RATE
    beat = _uniform(rows, 0.2, 0.6, generator)
    count = (time / beat).floor()
    since = time - count * beat
    steps = torch.tensor([0, 2, 4, 7, 9, 12, 14, 16], device=generator.device)
    wave = torch.zeros(rows, samples, device=generator.device)
    for _ in range(3):
        melody = steps[torch.randint(8, (rows, 512), generator=generator, device=generator.device)]
        note = melody.gather(1, count.long().clamp_max(511))
        hertz = _uniform(rows, 110, 440, generator) * 2 ** (note / 12)
        pluck = torch.exp(-since * _uniform(rows, 2, 9, generator))
        angle = 2 * math.pi * hertz * since
        wave += pluck * (torch.sin(angle) + 0.4 * torch.sin(2 * angle) + 0.2 * torch.sin(3 * angle))
    return wave / 2
