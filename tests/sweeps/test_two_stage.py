"""Adaptive sweeps: their intervals cover what they should, and seeds are added until they are narrow."""

import numpy as np
import polars
import pytest
import yaml

from talkinghead_lab.__main__ import main
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.sweeps import definition, processes
from talkinghead_lab.sweeps.definition import FEWEST_SEEDS, Sweep, Target
from talkinghead_lab.sweeps.plan import plan_sweep
from talkinghead_lab.sweeps.statistics import half_width, paired_differences
from talkinghead_lab.sweeps.sweep import results, run_sweep
from talkinghead_lab.sweeps.two_stage import allocated, seeds_of_each

SWEEPS = 2000
MEASURE = "sharpness"


def gamma(skew):
    """Draw values of mean 0, standard deviation 1 and this skew."""
    shape = 4 / skew**2
    return lambda generator, size: (generator.gamma(shape, size=size) - shape) / np.sqrt(shape)


def simulated(draw, precision, max_runs, shift=0.0):
    """Ends of the intervals of sweeps of two comparisons: [sweeps, comparisons, ends]; and of their seeds."""
    generator = np.random.default_rng(0)
    ends, seeds = [], []
    listed = dict.fromkeys(("reference", 0, 1), FEWEST_SEEDS)
    for _ in range(SWEEPS):
        values = draw(generator, (2, max_runs)) + shift
        spreads = np.std(values[:, :FEWEST_SEEDS], axis=1, ddof=1)
        first = {k: half_width(spreads[k], FEWEST_SEEDS, 1) for k in range(2)}
        counts = allocated(first, "reference", listed, 1, Target(precision, max_runs))
        means = [values[k, : counts[k]].mean() for k in range(2)]
        half = [half_width(spreads[k], FEWEST_SEEDS, counts[k]) for k in range(2)]
        ends.append([(mean - width, mean + width) for mean, width in zip(means, half, strict=True)])
        seeds.append([counts[0], counts[1]])
    return np.array(ends), np.array(seeds)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, gamma(0.5), gamma(-1.0), gamma(1.0)])
@pytest.mark.parametrize(("precision", "max_runs"), [(0.35, 400), (0.25, 600), (0.25, 150)])
def test_95_percent_intervals_cover_in_93_to_97_percent_of_sweeps(draw, precision, max_runs):
    """150 runs are too few for the precision."""
    ends, seeds = simulated(draw, precision, max_runs)
    assert np.median(seeds) > FEWEST_SEEDS, "the second stage has seeds"
    covered = (ends[..., 0] <= 0) & (ends[..., 1] >= 0)
    assert 0.93 <= covered.mean() <= 0.97
    narrow = np.ptp(ends, axis=-1) <= 2 * precision * (1 + 1e-9)
    assert (narrow.mean() > 0.99) == (max_runs > 150)


def test_seeds_go_to_the_widest_interval_until_all_are_narrow_or_the_runs_are_spent():
    listed = dict.fromkeys("ref", FEWEST_SEEDS)
    first = {"e": 4.0, "f": 2.0}
    narrow = allocated(first, "r", listed, 2, Target(0.4, 1000))
    assert narrow == {"e": 100, "f": 25, "r": 100}, "(4 / 0.4)² and (2 / 0.4)²"
    for budget in range(144, 460, 11):
        counts = allocated(first, "r", listed, 2, Target(0.4, budget))
        assert 2 * sum(counts.values()) <= budget
        assert counts["r"] == max(counts["e"], counts["f"])
        assert counts["f"] == FEWEST_SEEDS or 4 / counts["e"] ** 0.5 < 2 / (counts["f"] - 1) ** 0.5
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


def test_the_spread_is_that_of_the_first_stage_by_seed():
    differences = np.random.default_rng(1).normal(1.0, 0.5, (20, 2))
    (row,) = paired_differences(
        table_of(differences), ["kind"], MEASURE, {"kind": "old"}, first_stage=range(1, 13)
    ).to_dicts()
    by_seed = differences.mean(axis=1)
    half = 2.200985 * by_seed[:12].std(ddof=1) / 20**0.5  # t of 11 degrees, from tables
    assert row["mean"] == pytest.approx(by_seed.mean())
    assert (row["low"], row["high"]) == pytest.approx((row["mean"] - half, row["mean"] + half))
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
    return {"base": base, "axes": {"text_guide_scale": [1.0, 3.0]}, "seeds": list(range(1, 1 + FEWEST_SEEDS))}


@pytest.fixture
def few(sections, monkeypatch):
    """A sweep of four seeds, as if these were enough."""
    monkeypatch.setattr(definition, "FEWEST_SEEDS", 4)
    return sections | {"seeds": [1, 2, 3, 4]}


def adaptive(sections, added, table):
    """The sweep with the precision for which its table of the first stage adds this many seeds."""
    (row,) = paired_differences(
        table, ["text_guide_scale"], MEASURE, {"text_guide_scale": 1.0}, first_stage=sections["seeds"]
    ).to_dicts()
    precision = (row["high"] - row["low"]) / 2 * (4 / (4 + added - 0.5)) ** 0.5
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
        ({"precision": 0.1, "max_runs": 47}, "allowed: 48, the runs of the listed seeds"),
        ({"precision": 0.1, "max_runs": 50.5}, "allowed: a whole number"),
        ({"precision": 0.1, "max_runs": 99, "measure": "sharpnes"}, "Did you mean `sharpness`"),
        (
            {"precision": 0.1, "max_runs": 99, "seeds": [1, 2]},
            "too few seeds: received 2; allowed: at least 24",
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
    path.write_text(yaml.safe_dump(sections | {"precision": 0.3, "max_runs": 300, "measure": MEASURE}))
    found = plan_sweep(Sweep.from_yaml(path), tmp_path)
    assert found.typical == found.noisiest
    assert found.typical.half_width == pytest.approx(0.3, rel=0.03)
    assert found.typical.runs == 2 * int(np.ceil((2.068658 / 0.3) ** 2))
    ends, _ = simulated(np.random.Generator.standard_normal, 0.3, 300, found.typical.visible)
    assert 0.77 <= (ends[..., 0] > 0).mean() <= 0.83, "80 % power"
    assert main(["plan", str(path), "--runs", str(tmp_path)]) == 0
    assert (
        "48 runs of 2 combinations, up to 300\nsharpness, from 1 finished comparisons"
        in capsys.readouterr().out
    )
    two = Sweep.from_sections(
        sections | {"portraits": ["sample:portrait", "sample:portrait-2"], "precision": 0.01, "max_runs": 96}
        | {"measure": MEASURE}
    )  # fmt: skip
    assert plan_sweep(two, tmp_path).typical.spread == pytest.approx(0.5**0.5), "the mean of two portraits"
    fixed = plan_sweep(Sweep.from_sections(sections), tmp_path, MEASURE).typical
    assert (fixed.runs, fixed.half_width) == (48, pytest.approx(2.068658 / 24**0.5))
    assert plan_sweep(two).typical is None
    assert "--runs FOLDER" in str(plan_sweep(two))
