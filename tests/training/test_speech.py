"""Synthesised speech: audio aligned with the mouth, known phonemes, disjoint splits."""

import random

import numpy as np
import pytest
import torch
from torch import Generator

from talkinghead_lab.training import sounds, speech
from talkinghead_lab.training.corpus import build_corpus, load_corpus
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.sentences import SPOKEN, TEST_FRAMES, TRAIN_FRAMES, sentence_split, sentences
from talkinghead_lab.training.speech import SAMPLES_PER_FRAME, Voice, loudness, sample_voice, speak
from talkinghead_lab.training.visemes import Segment, viseme_track, visemes_of

needs = {
    engine: pytest.mark.skipif(
        engine not in speech.synthesisers(), reason=f"{program} is not installed (apt-get install {program})"
    )
    for engine, program in (("flite", "flite"), ("espeak", "espeak-ng"))
}
engines = [pytest.param(engine, marks=needs[engine]) for engine in needs]
VOICES = {
    "flite": [Voice("flite", "slt"), Voice("flite", "rms", 1.2, 0.3)],
    "espeak": [Voice("espeak", "en-us+f2", 0.9), Voice("espeak", "en-gb-scotland+m3", 1.1, 0.7)],
}


def test_splits_share_no_sentence_and_no_voice():
    train, test = sentences("train", 800, 0), sentences("test", 200, 0)
    assert not set(train) & set(test)
    assert not set(TRAIN_FRAMES) & set(TEST_FRAMES)
    assert len(set(train)) > 780
    assert 4 <= sum(sentence_split(line) == "test" for line in SPOKEN) <= 20
    rng = random.Random(0)
    names = {
        split: {sample_voice(split, rng).name.split("+")[-1] for _ in range(300)}
        for split in ("train", "test")
    }
    assert not names["train"] & names["test"]


def test_lips_close_and_open_on_their_phonemes():
    names = ["_", "m", "A:", "m", "u:", "s", "_"]
    segments = [Segment(name, 0.2 * index, 0.2 * (index + 1)) for index, name in enumerate(names)]
    mouth = viseme_track(segments, 35)
    at = {index: mouth[index * 5 + 2] for index in range(7)}
    assert at[0][0] < 0.01 > at[6][0]
    assert at[1][0] < 0.05 > at[3][0]
    assert at[2][0] > 0.7
    assert at[4][2] > 0.8  # rounded
    assert at[5][3] > 0.8  # teeth
    assert np.abs(np.diff(mouth[:, 0])).max() < 0.6


def test_unknown_phonemes_are_named():
    with pytest.raises(KeyError, match="%"):
        visemes_of("%")


@pytest.mark.parametrize("engine", engines)
def test_mouth_and_audio_are_aligned(engine):
    lags = {lag: [] for lag in (-2, -1, 0, 1, 2)}
    for voice in VOICES[engine]:
        for sentence in sentences("train", 4, 1):
            spoken = speak(sentence, voice)
            assert len(spoken.wave) == len(spoken.mouth) * SAMPLES_PER_FRAME
            energy, opening = loudness(spoken.wave), spoken.mouth[:, 0]
            for lag, values in lags.items():
                shifted = opening[2 + lag : len(opening) - 2 + lag]
                values.append(np.corrcoef(energy[2:-2], shifted)[0, 1])
    means = {lag: float(np.mean(values)) for lag, values in lags.items()}
    assert max(means, key=means.get) == 0, means
    assert means[0] > 0.5, means


@pytest.mark.parametrize("engine", engines)
def test_every_phoneme_of_a_pangram_has_a_viseme(engine):
    line = "Would you judge five thin zebras? The boy hears our pure, beige measure; they choose something."
    for voice in VOICES[engine]:
        spoken = speak(line, voice)
        assert spoken.mouth[:, 0].max() > 0.6
        assert (spoken.mouth[:, 0] >= 0).all()
        assert (spoken.mouth <= 1).all()


@needs["flite"]
@needs["espeak"]
def test_a_corpus_loads_as_it_was_built(tmp_path):
    path = tmp_path / "test.safetensors"
    size = build_corpus(path, "test", minutes=0.4, seed=3, workers=1)
    corpus = load_corpus(path)
    seconds = sum(monologue.frames for monologue in corpus) / 25
    assert 24 <= seconds < 60
    assert size < 600_000 * seconds / 60
    for monologue in corpus:
        assert len(monologue.wave) == monologue.frames * SAMPLES_PER_FRAME
        again = np.concatenate([speak(line, monologue.voice).mouth[:, 0] for line in monologue.sentences])
        assert abs(again.sum() - monologue.mouth[:, 0].sum()) < 0.01 * again.sum()
    batch = ClipMaker(corpus, "test", seed=0, non_speech_share=0).batch(2, frames=5, size=32)
    assert batch.frames.shape == (2, 5, 3, 32, 32)
    assert batch.wave.shape == (2, 5 * SAMPLES_PER_FRAME)
    assert batch.motion.mouth.shape == (2, 5, 5)
    same = ClipMaker(corpus, "test", seed=0, non_speech_share=0).batch(2, frames=5, size=32)
    assert torch.equal(batch.frames, same.frames)
    assert batch.captions == same.captions


def test_augmentation_keeps_timing_and_range():
    clicks = torch.zeros(12, 16000)
    clicks[:, 8000] = 0.8
    augmented = sounds.augment(clicks, Generator().manual_seed(0))
    assert augmented.shape == clicks.shape
    assert augmented.abs().max() <= 1
    assert ((augmented.abs().argmax(1) - 8000).abs() <= 8).all()


def test_non_speech_includes_silence_and_sound():
    generator = Generator().manual_seed(1)
    waves = sounds.non_speech(32, 16000, generator)
    assert waves.isfinite().all()
    levels = waves.square().mean(1).sqrt()
    assert (levels < 1e-3).any()
    assert (levels > 1e-2).any()
    assert len(sounds.NON_SPEECH) == 4
