"""Adaptive sweeps: their intervals cover what they should, and seeds are added until they are narrow."""

from pathlib import Path

import numpy as np
import polars
import pytest
import yaml
from scipy import stats

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.sweeps import definition, processes
from talkinghead_lab.sweeps.definition import FEWEST_SEEDS, Sweep, Target
from talkinghead_lab.sweeps.plan import plan_sweep
from talkinghead_lab.sweeps.statistics import FirstStage, by_seed, compared, paired_differences
from talkinghead_lab.sweeps.sweep import results, run_sweep
from talkinghead_lab.sweeps.two_stage import allocated, seeds_of_each

PUBLISHED = Path(__file__).parents[2] / "outputs" / "published"
SWEEPS = 2000
MEASURE = "sharpness"


def normal(generator, count):
    """Differences of two comparisons: [2, count]. All draws have mean 0 and standard deviation 1."""
    return generator.standard_normal((2, count))


def gamma(skew):
    """Differences of two comparisons with this skew."""
    shape = 4 / skew**2
    return lambda generator, count: (
        np.sign(skew) * (generator.gamma(shape, size=(2, count)) - shape) / np.sqrt(shape)
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
    return lambda generator, count: np.stack([generator.choice(each, count) for each in populations])


def simulated(draw, precision, max_runs, shift=0.0):
    """Ends of the intervals of sweeps: [sweeps, comparisons, ends]; and numbers of seeds."""
    generator = np.random.default_rng(0)
    ends, seeds = [], []
    for _ in range(SWEEPS):
        values = draw(generator, max_runs) + shift
        first = {k: FirstStage.of(row[:FEWEST_SEEDS]) for k, row in enumerate(values)}
        listed = dict.fromkeys(("reference", *first), FEWEST_SEEDS)
        counts = allocated(first, "reference", listed, 1, Target(precision, max_runs))
        ends.append([values[k, : counts[k]].mean() + first[k].ends(counts[k]) for k in first])
        seeds.append([counts[k] for k in first])
    return np.array(ends), np.array(seeds)


DRAWS = {
    "normal": normal,
    "skew -1": gamma(-1.0),
    "exponential": gamma(2.0),
    "02 lips of seeds": published("02_cfg_sweep", "lip_correlation", of_seeds=True),
    "03 lips": published("03_step_sweep", "lip_correlation"),
    "03 mouth": published("03_step_sweep", "mouth_follows_sound"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("precision", "max_runs"), [(0.25, 1000), (0.25, 340), (0.18, 1600)])
def test_95_percent_intervals_cover_in_93_to_97_percent_of_sweeps(name, precision, max_runs):
    """Of 340 runs, comparisons that differ in their spread get what they need most; these are too few."""
    ends, seeds = simulated(DRAWS[name], precision, max_runs)
    assert np.median(seeds) > FEWEST_SEEDS, "the second stage has seeds"
    covered = ((ends[..., 0] <= 0) & (ends[..., 1] >= 0)).mean(axis=0)
    assert 0.93 <= covered.mean() <= 0.97
    assert covered.min() >= 0.92 and covered.max() <= 0.98, "single comparisons scatter by 0.5 %"
    narrow = np.ptp(ends, axis=-1) <= 2 * precision * (1 + 1e-9)
    assert narrow.all() == (max_runs > 340)


def test_seeds_go_to_the_widest_interval_until_all_are_narrow_or_the_runs_are_spent():
    listed = dict.fromkeys("ref", FEWEST_SEEDS)
    first = {"e": FirstStage(2.0, 0.0, FEWEST_SEEDS), "f": FirstStage(1.3, 0.0, FEWEST_SEEDS)}
    narrow = allocated(first, "r", listed, 2, Target(0.4, 1000))
    assert narrow == {"e": 103, "f": 44, "r": 103}, "(2.0227 spread / 0.4)², with t of 39 degrees from tables"
    skewed = allocated({"e": FirstStage(2.0, 1.5, FEWEST_SEEDS)}, "r", listed, 2, Target(0.4, 1000))
    assert 103 < skewed["e"] < 110, "the arms of a skewed interval differ, and it is wider"
    for budget in range(240, 520, 11):
        counts = allocated(first, "r", listed, 2, Target(0.4, budget))
        assert 2 * sum(counts.values()) <= budget
        assert counts["r"] == max(counts["e"], counts["f"])
        assert counts["f"] == FEWEST_SEEDS or 2.0 / counts["e"] ** 0.5 < 1.3 / (counts["f"] - 1) ** 0.5
    assert allocated({}, "r", listed, 2, Target(0.5, 1000)) == listed


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
    low, high = FirstStage(2.0, skew, 12).ends(40)
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
    low, high = FirstStage(found[:12].std(ddof=1), stats.skew(found[:12]), 12).ends(20)
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
    before = processes.ThisMachine.run

    def interrupted(machine, jobs, on_done):
        assert len(jobs) == 6, "the runs of the first stage are those of the sweep without a target"
        before(machine, jobs[:2], on_done)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(processes.ThisMachine, "run", interrupted)
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


def test_a_plan_foresees_what_a_sweep_will_see(sections, tmp_path, capsys):
    differences = np.random.default_rng(1).normal(0.0, 1.0, (400, 1))
    differences /= differences.std(ddof=1)
    table_of(differences, portraits="a").write_parquet(tmp_path / "results.parquet")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sections | {"precision": 0.25, "max_runs": 300, "measure": MEASURE}))
    found = plan_sweep(Sweep.from_yaml(path), tmp_path)
    assert found.typical == found.noisiest
    assert found.typical.half_width == pytest.approx(0.25, rel=0.03)
    assert found.typical.runs == 2 * int(np.ceil((2.022691 / 0.25) ** 2)), "t of 39 degrees, from tables"
    ends, _ = simulated(normal, 0.25, 300, found.typical.visible)
    assert 0.78 <= (ends[..., 0] > 0).mean() <= 0.82, "80 % power"
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
    assert (fixed.runs, fixed.half_width) == (80, pytest.approx(2.022691 / 40**0.5))
    assert plan_sweep(two).typical is None
    assert "--runs FOLDER" in str(plan_sweep(two))
