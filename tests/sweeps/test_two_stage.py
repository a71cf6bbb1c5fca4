"""Adaptive sweeps: their intervals cover what they should, and seeds are added until they are narrow."""

from pathlib import Path

import numpy as np
import polars
import pytest
import yaml
from scipy import stats

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest, MediaError
from talkinghead_lab.sweeps import definition
from talkinghead_lab.sweeps.definition import FEWEST_SEEDS, Sweep, Target
from talkinghead_lab.sweeps.plan import plan_sweep
from talkinghead_lab.sweeps.statistics import FirstStage, by_seed, compared, paired_differences
from talkinghead_lab.sweeps.sweep import results, run_sweep
from talkinghead_lab.sweeps.two_stage import allocated, seeds_of_each
from talkinghead_lab.workers.this_machine import ThisMachine

PUBLISHED = Path(__file__).parents[2] / "outputs" / "published"
SWEEPS = 2000
MEASURE = "sharpness"


def normal(generator, size):
    """Differences of two comparisons: [sweeps, 2, seeds]. All draws have mean 0 and standard deviation 1."""
    return generator.standard_normal((size[0], 2, size[1]))


def gamma(skew):
    """Differences of two comparisons with this skew."""
    shape = 4 / skew**2
    return lambda generator, size: (
        np.sign(skew) * (generator.gamma(shape, size=(size[0], 2, size[1])) - shape) / np.sqrt(shape)
    )


def published(sweep, measure, of_seeds=False):
    """Differences of all comparisons of a published sweep: of its 24 pairs, or the means of its 12 seeds."""
    table = polars.read_parquet(PUBLISHED / sweep / "results.parquet")
    axes = table.columns[: table.columns.index("seed")]
    found = [
        by_seed(pairs) if of_seeds else pairs["difference"].to_numpy()
        for _, pairs in compared(table, axes, measure, table.row(0, named=True))
    ]
    populations = [(each - each.mean()) / each.std() for each in found if np.ptp(each) > 0]
    return lambda generator, size: np.stack([generator.choice(each, size) for each in populations], axis=1)


def simulated(draw, precision, most):
    """Ends of the intervals of sweeps, whose differences have mean 0, and their numbers of seeds.

    Both are [sweeps, comparisons]. The budget is a mean of `most` seeds for each combination.
    """
    values = draw(np.random.default_rng(0), (SWEEPS, 600))
    first = FirstStage.of(values[..., :FEWEST_SEEDS])
    target = Target(precision, most * (1 + values.shape[1]))
    seeds = allocated(first, FEWEST_SEEDS, 1, target)
    means = np.take_along_axis(values.cumsum(axis=-1), seeds[..., None] - 1, axis=-1)[..., 0] / seeds
    low, high = first.ends(seeds)
    return means + low, means + high, seeds


DRAWS = {
    "normal": normal,
    "skew -1": gamma(-1.0),
    "skew 1.5": gamma(1.5),
    "exponential": gamma(2.0),
} | {
    f"{sweep} {measure} {'seeds' if of_seeds else 'pairs'}": published(sweep, measure, of_seeds)
    for sweep in ("02_cfg_sweep", "03_step_sweep")
    for measure in ("lip_correlation", "mouth_follows_sound")
    for of_seeds in (False, True)
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("precision", "most"), [(0.25, 500), (0.25, 55), (0.18, 500)])
def test_95_percent_intervals_cover_in_93_to_97_percent_of_sweeps(name, precision, most):
    """55 seeds are too few for the precision."""
    low, high, seeds = simulated(DRAWS[name], precision, most)
    assert np.median(seeds) > FEWEST_SEEDS, "the second stage has seeds"
    covered = ((low <= 0) & (high >= 0)).mean(axis=0)
    assert 0.93 <= covered.mean() <= 0.97
    assert covered.min() >= 0.92 and covered.max() <= 0.98, "single comparisons scatter by 0.5 %"
    assert (high - low <= 2 * precision * (1 + 1e-9)).all() == (most > 55)


def stages(spreads, skew=0.0):
    """First stages of the comparisons of one sweep: [1, comparisons]."""
    return FirstStage(
        np.array([spreads]), np.full((1, len(spreads)), skew), np.full((1, len(spreads)), FEWEST_SEEDS)
    )


def test_seeds_go_to_the_widest_interval_until_all_are_narrow_or_the_runs_are_spent():
    narrow = allocated(stages([2.0, 1.3]), FEWEST_SEEDS, 2, Target(0.4, 1000))
    assert narrow.tolist() == [[103, 44]], "(2.0227 spread / 0.4)², with t of 39 degrees from tables"
    ((skewed,),) = allocated(stages([2.0], 1.5), FEWEST_SEEDS, 2, Target(0.4, 1000))
    assert 103 < skewed < 110, "the arms of a skewed interval differ, and it is wider"
    for budget in range(240, 520, 11):
        ((wide, other),) = allocated(stages([2.0, 1.3]), FEWEST_SEEDS, 2, Target(0.4, budget))
        left = budget - 2 * (wide + other + wide)
        assert 0 <= left < 4 or (wide, other) == (103, 44)
        assert other == FEWEST_SEEDS or 2.0 / wide**0.5 < 1.3 / (other - 1) ** 0.5


def table_of(differences, portraits=("a", "b")):
    """A table of results in which `new` differs from `old` by [seeds, portraits]."""
    rows = [
        {"kind": kind, "seed": seed, "portrait": portrait, "recording": "r", "cell": "c", "state": "finished"}
        | {MEASURE: 10.0 * seed + (kind == "new") * differences[seed - 1, k]}
        for kind in ("old", "new")
        for seed in range(1, len(differences) + 1)
        for k, portrait in enumerate(portraits)
    ]
    return polars.DataFrame(rows)


@pytest.mark.parametrize("skew", [0.0, 0.7, -1.8, 5.0])
def test_the_ends_are_where_hall_s_transformation_gives_student_s_t(skew):
    low, high = FirstStage(np.array(2.0), np.array(skew), np.array(12)).ends(40)
    for end, t in ((low, 2.200985), (high, -2.200985)):  # of 11 degrees, from tables
        x = -end / 2.0
        transformed = x + skew * x**2 / 3 + skew**2 * x**3 / 27 + skew / (6 * 40)
        assert 40**0.5 * transformed == pytest.approx(t, rel=1e-6)


def test_spread_and_skew_are_those_of_the_first_stage_by_seed():
    differences = np.random.default_rng(1).normal(1.0, 0.5, (20, 2))
    (row,) = paired_differences(
        table_of(differences), ["kind"], MEASURE, {"kind": "old"}, first_stage=range(1, 13)
    ).to_dicts()
    found = differences.mean(axis=1)
    low, high = FirstStage(found[:12].std(ddof=1), stats.skew(found[:12]), np.array(12)).ends(20)
    assert row["mean"] == pytest.approx(found.mean())
    assert (row["low"], row["high"]) == pytest.approx((row["mean"] + low, row["mean"] + high))
    assert (row["interval"], row["count"]) == ("two-stage", 40)


def test_a_seed_that_lacks_a_portrait_does_not_count():
    differences = np.random.default_rng(1).normal(1.0, 0.5, (14, 2))
    table = table_of(differences)
    damaged = table.filter(~((polars.col("seed") == 3) & (polars.col("portrait") == "b")))
    given = (["kind"], MEASURE, {"kind": "old"})
    found = paired_differences(damaged, *given, first_stage=range(1, 13))
    without = paired_differences(table.filter(polars.col("seed") != 3), *given, first_stage=range(1, 13))
    assert found.equals(without)
    assert found["count"].to_list() == [26]


@pytest.fixture
def sections(request_for):
    base = request_for(max_frames=9).model_dump(mode="json", exclude_defaults=True)
    return {
        "base": base,
        "axes": {"text_guide_scale": [1.0, 3.0]},
        "seeds": {"from": 1, "to": FEWEST_SEEDS, "step": 1},
    }


@pytest.fixture
def few(sections, monkeypatch):
    """A sweep of four seeds, as if these were enough."""
    monkeypatch.setattr(definition, "FEWEST_SEEDS", 4)
    return sections | {"seeds": [1, 2, 3, 4]}


def adaptive(sections, added, table):
    """The sweep with the precision for which its table of the first stage adds this many seeds."""
    ((_, pairs),) = compared(table, ["text_guide_scale"], MEASURE, {"text_guide_scale": 1.0})
    first = FirstStage.of(by_seed(pairs))
    precision = (first.half_width(4 + added - 1) + first.half_width(4 + added)) / 2
    return Sweep.from_sections(sections | {"precision": precision, "max_runs": 100, "measure": MEASURE})


def test_a_sweep_adds_seeds_stops_and_resumes(few, tmp_path, monkeypatch, caplog):
    first = run_sweep(Sweep.from_sections(few), tmp_path, show_progress=False)
    sweep = adaptive(few, 3, first)
    assert seeds_of_each(sweep, first) == {(1.0,): 7, (3.0,): 7}
    before = ThisMachine.run

    def interrupted(machine, jobs, on_done):
        assert len(jobs) == 6, "the runs of the first stage are those of the sweep without a target"
        before(machine, jobs[:2], on_done)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ThisMachine, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, tmp_path, show_progress=False)
    partial = polars.read_csv(tmp_path / "results.csv")
    assert partial["state"].to_list().count("missing") == 4
    assert "results.csv is partial: 4 of 14 runs are left" in caplog.text
    table = run_sweep(sweep, tmp_path, show_progress=False)
    assert table["seed"].to_list() == 2 * list(range(1, 8))
    assert set(table["state"]) == {"finished"}
    assert results(Sweep.from_yaml(tmp_path / "sweep.yaml"), tmp_path).equals(table)
    assert "differences are not known" not in caplog.text
    spent = Sweep.from_sections(few | {"precision": 1e-9, "max_runs": 8, "measure": MEASURE})
    assert len(run_sweep(spent, tmp_path, show_progress=False)) == 8
    assert "1 of 1 differences are not known to ±1e-09: max_runs is 8" in caplog.text


@pytest.mark.slow
def test_worker_processes_run_the_second_stage(few, tmp_path):
    first = run_sweep(Sweep.from_sections(few), tmp_path / "first", show_progress=False)
    sweep = adaptive(few, 2, first)
    table = run_sweep(sweep, tmp_path / "out", workers=2, show_progress=False)
    assert table["seed"].to_list() == 2 * list(range(1, 7))
    assert set(table["state"]) == {"finished"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": 0.02}, "an adaptive sweep needs max_runs"),
        ({"max_runs": 100}, "an adaptive sweep needs precision"),
        ({"precision": -1, "max_runs": 100}, "precision is not valid"),
        ({"precision": "wide", "max_runs": 100}, "precision is not valid: received wide"),
        ({"precision": 0.1, "max_runs": 79}, "allowed: 80, the runs of the listed seeds"),
        ({"precision": 0.1, "max_runs": 90.5}, "allowed: a whole number"),
        ({"precision": 0.1, "max_runs": 99, "measure": "sharpnes"}, "Did you mean `sharpness`"),
        (
            {"precision": 0.1, "max_runs": 99, "seeds": [1, 2]},
            "too few seeds: received 2; allowed: at least 40",
        ),
    ],
)
def test_targets_that_are_refused(sections, change, message):
    with pytest.raises(InvalidRequest, match=message):
        Sweep.from_sections(sections | change)


def test_values_of_an_axis_may_be_lists(sections):
    axis = {"text_guide_scale": [2.0, [3.0, 1.0]]}
    sweep = Sweep.from_sections(sections | {"axes": axis, "base": sections["base"] | {"diffusion_steps": 2}})
    assert sweep.values() == {"text_guide_scale": ["2.0", "[3.0, 1.0]"]}
    assert {cell.position["text_guide_scale"]: cell.params.text_guide_scale for cell in sweep.cells()} == {
        "2.0": 2.0,
        "[3.0, 1.0]": (3.0, 1.0),
    }


@pytest.mark.parametrize("most", [500, 55])
@pytest.mark.parametrize("name", ["normal", "skew -1", "exponential"])
def test_a_difference_that_a_plan_names_is_seen_in_80_percent_of_sweeps(sections, tmp_path, name, most):
    """55 seeds are too few for the precision."""
    differences = DRAWS[name](np.random.default_rng(1), (1, 5000))[0, 0]
    table_of(differences[:, None], portraits="a").write_parquet(tmp_path / "results.parquet")
    target = {"precision": 0.25, "max_runs": 3 * most, "measure": MEASURE}
    sweep = Sweep.from_sections(sections | {"axes": {"text_guide_scale": [1.0, 2.0, 3.0]}} | target)
    found = plan_sweep(sweep, tmp_path).typical
    low, high, seeds = simulated(DRAWS[name], 0.25, most)
    assert 0.78 <= (low + found.rise > 0).mean() <= 0.82
    assert 0.78 <= (high - found.fall < 0).mean() <= 0.82
    assert found.half_width == pytest.approx(np.median(high - low) / 2, rel=0.02)
    assert found.runs == pytest.approx((seeds.sum(axis=1) + seeds.max(axis=1)).mean(), rel=0.02)


def test_a_plan_foresees_what_a_sweep_will_see(sections, tmp_path, capsys):
    differences = np.random.default_rng(1).normal(0.0, 1.0, (400, 1))
    differences /= differences.std(ddof=1)
    table_of(differences, portraits="a").write_parquet(tmp_path / "results.parquet")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sections | {"precision": 0.25, "max_runs": 300, "measure": MEASURE}))
    found = plan_sweep(Sweep.from_yaml(path), tmp_path)
    assert found.typical == found.noisiest
    assert found.typical.half_width == pytest.approx(0.25, rel=0.03)
    assert found.typical.runs == pytest.approx(2 * (2.022691 / 0.25) ** 2, rel=0.02), "t of 39 degrees"
    assert main(["plan", str(path), "--runs", str(tmp_path)]) == 0
    assert (
        "80 runs of 2 combinations, up to 300\nsharpness, from 1 finished comparisons"
        in capsys.readouterr().out
    )
    two = Sweep.from_sections(
        sections | {"portraits": ["sample:portrait", "sample:portrait-2"], "precision": 0.01, "max_runs": 160}
        | {"measure": MEASURE}
    )  # fmt: skip
    assert plan_sweep(two, tmp_path).typical.spread == pytest.approx(0.5**0.5), "the mean of two portraits"
    fixed = plan_sweep(Sweep.from_sections(sections), tmp_path, MEASURE).typical
    assert (fixed.runs, fixed.half_width) == (80, pytest.approx(2.022691 / 40**0.5, rel=0.02))
    assert plan_sweep(two).typical is None
    assert "--runs FOLDER" in str(plan_sweep(two))


def test_a_plan_names_a_missing_recording(sections):
    sweep = Sweep.from_sections(sections | {"recordings": ["sample:recording", "gone.wav"]})
    with pytest.raises(MediaError, match=r"no such file.*gone\.wav"):
        plan_sweep(sweep)
