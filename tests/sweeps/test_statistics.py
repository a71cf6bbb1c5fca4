"""Statistics agree with published examples."""

import numpy as np
import polars
import pytest
from scipy import stats

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.sweeps.statistics import Estimate, means, paired_differences, pareto_front

SLEEP_DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]  # Student 1908
SLEEP_DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.fixture
def sleep() -> polars.DataFrame:
    rows = [
        {"drug": drug, "seed": seed, "portrait": None, "recording": "r", "state": "finished", "hours": hours}
        for drug, column in (("one", SLEEP_DRUG_1), ("two", SLEEP_DRUG_2))
        for seed, hours in enumerate(column)
    ]
    return polars.DataFrame(rows)


def test_student_s_own_example(sleep):
    """Mean difference 1.58, 95 % interval 0.70 to 2.46, t = 4.0621 on 9 degrees (R, `t.test(sleep)`)."""
    (row,) = paired_differences(sleep, ["drug"], "hours", {"drug": "one"}).to_dicts()
    assert (row["drug"], row["count"]) == ("two", 10)
    assert row["mean"] == pytest.approx(1.58)
    assert (row["low"], row["high"]) == pytest.approx((0.7001142, 2.4598858))
    assert row["effect"] == pytest.approx(4.0621 / 10**0.5, rel=1e-4)


def test_means_have_scipy_s_interval(sleep):
    one, two = means(sleep, ["drug"], "hours").to_dicts()
    expected = stats.ttest_1samp(SLEEP_DRUG_1, 0).confidence_interval(0.95)
    assert (one["low"], one["high"]) == pytest.approx(tuple(expected))
    assert two["mean"] == pytest.approx(2.33)


def test_the_bootstrap_interval_follows_the_skew(sleep):
    """One patient gained 4.6 hours, the others 1.2 on average: the upper arm is the longer one."""
    (row,) = paired_differences(sleep, ["drug"], "hours", {"drug": "one"}, "bootstrap").to_dicts()
    assert row["interval"] == "bootstrap"
    assert row["mean"] == pytest.approx(1.58)
    below, above = row["mean"] - row["low"], row["high"] - row["mean"]
    assert 0.3 < below < 0.88 < above < 1.3, "the t interval extends 0.88 to both sides"
    again = paired_differences(sleep, ["drug"], "hours", {"drug": "one"}, "bootstrap")
    assert again.to_dicts() == [row], "the seed is fixed"
    assert set(means(sleep, ["drug"], "hours")["interval"]) == {"t"}


def test_equal_values_have_an_interval_of_width_zero():
    assert Estimate.of([2.0, 2.0, 2.0], "bootstrap") == Estimate(2.0, 2.0, 2.0, 3, "bootstrap")


def test_failed_runs_and_runs_without_a_partner_are_ignored(sleep):
    damaged = sleep.with_columns(
        state=polars.when((polars.col("drug") == "one") & (polars.col("seed") == 3))
        .then(polars.lit("failed"))
        .otherwise("state")
    )
    (row,) = paired_differences(damaged, ["drug"], "hours", {"drug": "one"}).to_dicts()
    assert row["count"] == 9
    assert [found["count"] for found in means(damaged, ["drug"], "hours").to_dicts()] == [9, 10]


def test_intervals_of_correlations_stay_between_minus_one_and_one():
    """Of the same four values, Student's t goes up to 1.19."""
    values = [0.99, 0.95, 0.4, 0.97]
    assert Estimate.of(values).high > 1.1
    found = Estimate.of(values, "fisher")
    assert found.mean == pytest.approx(0.8275)
    assert -1 < found.low < found.mean < found.high < 1
    table = polars.DataFrame(
        {"steps": [4] * 4, "state": ["finished"] * 4, "lip_correlation": values, "sharpness": values}
    )
    assert means(table, ["steps"], "lip_correlation")["interval"][0] == "fisher"
    assert means(table, ["steps"], "lip_correlation", "bootstrap")["interval"][0] == "bootstrap"
    assert means(table, ["steps"], "sharpness")["interval"][0] == "t"


@pytest.mark.parametrize("count", [4, 12])
def test_intervals_of_correlations_cover_their_mean(count):
    """2,000 samples of correlations that scatter in Fisher's z; their true mean from a large sample."""
    rng = np.random.default_rng(0)
    truth = np.tanh(rng.normal(1.2, 0.4, 1_000_000)).mean()
    found = [Estimate.of(np.tanh(rng.normal(1.2, 0.4, count)), "fisher") for _ in range(2000)]
    assert 0.92 < np.mean([one.low <= truth <= one.high for one in found]) < 0.98


def test_two_values_have_no_interval_and_no_value_has_no_mean():
    assert Estimate.of([3.0]) == Estimate(3.0, None, None, 1)
    assert Estimate.of([3.0, 4.0]) == Estimate(3.5, None, None, 2)
    assert Estimate.of([]) == Estimate(None, None, None, 0)


def test_unknown_columns_and_a_base_without_runs_raise(sleep):
    with pytest.raises(InvalidRequest, match="Did you mean `hours`"):
        means(sleep, ["drug"], "hour")
    with pytest.raises(InvalidRequest, match="no finished run at the base"):
        paired_differences(sleep, ["drug"], "hours", {"drug": "three"})


def test_the_pareto_front_has_the_rows_that_no_other_beats():
    table = polars.DataFrame({"quality": [1.0, 3.0, 2.0, 3.0, None], "seconds": [1.0, 3.0, 4.0, 5.0, 0.1]})
    assert pareto_front(table, "quality", "seconds")["seconds"].to_list() == [1.0, 3.0]
    assert pareto_front(table, "quality", "seconds", False)["seconds"].to_list() == [1.0]
