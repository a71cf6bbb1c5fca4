"""Intervals cover what they should, and distances agree with closed forms."""

from itertools import product

import numpy as np
import pytest
from scipy import linalg

from talkinghead_lab.evaluation.statistics import (
    FrameSets,
    StreamedMoments,
    clip_mean,
    holm,
    paired_difference,
)

PEOPLE = 40


def test_intervals_cover_the_truth_when_people_appear_several_times():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        people = np.repeat(np.arange(PEOPLE), rng.integers(1, 5, PEOPLE))
        values = 5 + rng.normal(size=PEOPLE)[people] + rng.normal(0, 0.5, len(people))
        interval = clip_mean(values, [str(person) for person in people])
        covered += interval.low <= 5 <= interval.high
    assert 930 <= covered <= 970


def test_the_mean_counts_clips_and_the_interval_counts_people():
    names = [name for name in "abcdefghij" for _ in range(4)]
    values = np.repeat(np.arange(10.0), 4)
    interval = clip_mean(values, names)
    assert interval.value == values.mean()
    assert interval.identities == 10
    alone = clip_mean(values, [str(number) for number in range(40)])
    assert interval.high - interval.low > 1.5 * (alone.high - alone.low)


def test_no_interval_of_a_few_people_and_no_width_of_equal_values():
    assert clip_mean(np.arange(4.0), list("aabb")).low is None
    equal = clip_mean(np.ones(12), list("abcdefghijkl"))
    assert (equal.low, equal.value, equal.high) == (1, 1, 1)


def test_an_interval_of_values_most_of_which_are_equal_is_finite():
    interval = clip_mean(np.array([0.0] * 8 + [-1.0, -2.0]), list("abcdefghij"))
    assert -2 < interval.low < interval.value == -0.3 < interval.high < 2


def test_a_difference_by_luck_is_found_as_rarely_as_its_p_value_says():
    rng = np.random.default_rng(2)
    people = [str(number) for number in np.repeat(np.arange(20), 2)]
    p_values = []
    for _ in range(200):
        base = rng.normal(size=40)
        values = base + rng.normal(size=20).repeat(2) + rng.normal(0, 0.3, 40)
        p_values.append(paired_difference(values, base, people).p)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1
    certain = paired_difference(base + 1, base, people)
    assert certain.p < 0.01
    assert certain.interval.value == pytest.approx(1)
    assert paired_difference(base, base, people).p == 1


def test_nothing_is_concluded_from_one_person():
    assert paired_difference(np.array([1.0, 2.0]), np.zeros(2), ["a", "a"]).p == 1


def test_holm():
    """The smallest of three counts three times, and no adjusted value is below a smaller one's."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


def test_frechet_distance_of_normal_distributions():
    """|Δmean|² + Σ(σ₁ − σ₂)² for covariances with common axes (Dowson and Landau 1982)."""
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    one, other = np.array([1.0, 2.0, 0.5, 1.0]), np.array([2.0, 1.0, 0.5, 3.0])
    draw = lambda scale, shift: [rng.normal(size=(200, 4)) * scale @ turn + shift for _ in range(200)]  # noqa: E731
    found = FrameSets(draw(one, 0.0), draw(other, 0.5)).frechet_distance()
    assert found.value == pytest.approx(4 * 0.25 + np.square(one - other).sum(), rel=0.05)
    assert found.low < 7 < found.high


def test_kernel_distance_is_the_mean_over_pairs_of_different_people():
    rng = np.random.default_rng(4)
    first = [rng.normal(size=(count, 3)) for count in (2, 3, 1, 4)]
    second = [rng.normal(1, 1, size=(count, 3)) for count in (1, 2, 3, 0)]
    kernel = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731

    def mean(one, other):
        pairs = [
            kernel(x, y) for (i, a), (j, b) in product(enumerate(one), enumerate(other)) if i != j
            for x, y in product(a, b)
        ]  # fmt: skip
        return np.mean(pairs)

    expected = mean(first, first) + mean(second, second) - 2 * mean(first, second)
    assert FrameSets(first, second).kernel_distance().value == pytest.approx(expected)


def test_the_interval_of_the_kernel_distance_covers_it():
    """Truth by the kernel's expectation for x, y of two normal distributions, from a large sample."""
    rng = np.random.default_rng(5)

    def frames(shift, people):
        centres = rng.normal(size=(people, 1, 6)) + shift
        return list(centres + rng.normal(0, 0.5, size=(people, 4, 6)))

    large = FrameSets(frames(0, 1500), frames(0.5, 1500))
    truth = FrameSets([x[:1] for x in large.first], [x[:1] for x in large.second]).kernel_distance().value
    covered = 0
    for _ in range(200):
        interval = FrameSets(frames(0, PEOPLE), frames(0.5, PEOPLE)).kernel_distance()
        covered += interval.low <= truth <= interval.high
    assert covered >= 180


def test_equal_sets_have_no_distance():
    rng = np.random.default_rng(6)
    frames = [rng.normal(size=(5, 3)) for _ in range(12)]
    found = FrameSets(frames, frames)
    assert found.frechet_distance().value == pytest.approx(0, abs=1e-6)
    assert found.kernel_distance().value == pytest.approx(0, abs=1e-12)


def test_streamed_moments_give_the_frechet_distance_of_all_features_at_once():
    """As the original script of FID computes it: NumPy's covariance, SciPy's matrix square root."""
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + shift for shift in (0, 1)]
    streams = [StreamedMoments(12), StreamedMoments(12)]
    for stream, features in zip(streams, sets, strict=True):
        for part in np.split(features, [1, 1, 17, 150]):
            stream.add(part)
    (mean, covariance), (other, other_covariance) = ((s.mean(0), np.cov(s, rowvar=False)) for s in sets)
    root = linalg.sqrtm(covariance @ other_covariance).real
    expected = np.square(mean - other).sum() + np.trace(covariance + other_covariance - 2 * root)
    assert streams[0].frechet_distance(streams[1]) == pytest.approx(expected, rel=1e-9)
