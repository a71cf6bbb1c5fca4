"""Many runs from one file: every combination of the axes, for every seed, portrait and recording.

base: {…}                                  # fields of a request
axes:
  diffusion_steps: [4, 8]                  # a list of values
  sample_shift: {from: 1, to: 7, step: 2}
  model:                                   # a linked axis, freely named: each value sets several fields
    guided: {}
    fast LoRA: {loras: [{path: sample:fast-lora}], text_guide_scale: 1, audio_guide_scale: 1}
seeds: [1, 2, 3]                           # or a range
portraits: [sample:portrait]               # default: that of the base
recordings: [sample:recording]
precision: 0.02                            # adaptive: more seeds, until each difference is known to ±0.02
max_runs: 400
measure: lip_correlation                   # of which the precision is
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError, nearest_name
from talkinghead_lab.foundation import digests
from talkinghead_lab.foundation.file_kinds import check_is_sweep
from talkinghead_lab.foundation.parameter_text import read_mapping, typed
from talkinghead_lab.foundation.presets import parameter_file
from talkinghead_lab.foundation.schema import versioned
from talkinghead_lab.measures.measure import KINDS
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.request_text import read_yaml, typed_value
from talkinghead_lab.runs.origin import InputDigests
from talkinghead_lab.sweeps.statistics import PAIRED_BY

REPLICATED = {"seeds": "seed", "portraits": "image_path", "recordings": "audio_path"}  # section: field
TARGET = ("precision", "max_runs", "measure")
SECTIONS = ("base", "axes", *REPLICATED, *TARGET)
# Columns of the table of results besides axes and measures.
COLUMNS = ("cell", "state", "error", "not_taken", "video_path")
MAX_CELLS = 100_000
FEWEST_SEEDS = 40  # with 24, intervals of differences as skewed as the published ones cover in 90 %

Axis = tuple[Any, ...] | dict[str, dict[str, Any]]
Combination = tuple[Any, ...]  # a value of each axis, as in the table


def is_sweep(path: str | Path) -> bool:
    """Whether a parameter file, or the preset of that name, is a sweep."""
    return not {"axes", "base"}.isdisjoint(read_mapping(parameter_file(path)))


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its request and its position on the axes."""

    params: GenerationParams
    position: Mapping[str, Any]

    def key(self, show_progress: bool = False) -> str:
        """Digest of the request and of the content of weights and media; names the cell's folder.

        A missing file changes the key, so that the cell runs again once the file exists.
        """
        try:
            inputs = InputDigests.of(self.params, show_progress=show_progress).digest
        except TalkingHeadError as error:
            inputs = str(error)
        return digests.combined([self.params.model_dump(mode="json"), inputs])[:20]


@dataclass(frozen=True)
class Target:
    """What an adaptive sweep aims at.

    Args:
        precision: half the width of the 95 % interval of each paired difference.
        max_runs: most runs of the sweep; if they do not suffice, the widest intervals are narrowed first.
        measure: the measure that is compared.
    """

    precision: float
    max_runs: int
    measure: str = "lip_correlation"


@dataclass(frozen=True)
class Sweep:
    """A base request and the axes along which it varies.

    Args:
        base: fields of the request that all cells share.
        axes: values by field name; or a linked axis: a name that is not a field, with named values that set
            several fields each.
        seeds, portraits, recordings: every combination of the axes runs for each of them, so that
            combinations can be compared in pairs. Empty: those of the base.
        target: adds seeds after those that are listed; see `two_stage`. None: none are added.
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Axis]
    seeds: tuple[int, ...] = ()
    portraits: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    target: Target | None = None

    @classmethod
    def from_yaml(cls, path: str | Path, base: Mapping[str, Any] | None = None) -> "Sweep":
        """Read a sweep's file, or the preset of that name; fields of `base` override those of its base.

        Raises:
            InvalidRequest: a section, a field or a range is not valid.
        """
        sections = read_yaml(path, sweep=True)
        check_is_sweep(sections, SECTIONS, GenerationParams.model_fields)
        return cls.from_sections(sections | {"base": {**_section(sections, "base", dict), **(base or {})}})

    def reduced(self, frames: int = 25) -> "Sweep":
        """A small version as a quick check.

        It has the ends of each axis, one portrait and recording, at most two seeds, and one chunk of one
        second.
        """
        ends = {name: _first_and_last(axis) for name, axis in self.axes.items()}
        base = {**self.base, "max_frames": frames, "chunk_frames": frames}
        return Sweep(base, ends, self.seeds[:2], self.portraits[:1], self.recordings[:1])

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> "Sweep":
        """Build a sweep from the sections of its file and check the requests of all cells."""
        for name in sections:
            if name not in SECTIONS:
                raise InvalidRequest(
                    "unknown section of a sweep", received=name, remedy=nearest_name(name, SECTIONS)
                )
        axes = {name: _parsed_axis(name, axis) for name, axis in _section(sections, "axes", dict).items()}
        if seeds := _range("seed", sections.get("seeds")):
            sections = {**sections, "seeds": list(seeds)}
        replicates: dict[str, Any] = {
            name: tuple(typed_value(field, value) for value in _section(sections, name, list))
            for name, field in REPLICATED.items()
        }
        sweep = cls(_typed(_section(sections, "base", dict)), axes, **replicates)
        count = len(sweep.cells())
        return replace(sweep, target=_target(sections, len(sweep.seeds), count))

    @property
    def first_stage(self) -> tuple[int, ...]:
        """The seeds of an adaptive sweep's first stage; none if the sweep is not adaptive."""
        return self.seeds if self.target else ()

    @property
    def runs_per_seed(self) -> int:
        """Runs of a combination with one seed: portraits times recordings."""
        return max(1, len(self.portraits)) * max(1, len(self.recordings))

    def combinations(self) -> list[Combination]:
        """Every combination of the axes; the first one is the reference."""
        return list(itertools.product(*self.values().values()))

    def cells(self, seeds: Mapping[Combination, int] | None = None) -> list[Cell]:
        """Every run; the runs of one combination follow each other.

        Args:
            seeds: how many seeds each combination has; those after the listed ones follow the largest.
                None: the listed ones.

        Raises:
            InvalidRequest: a value is not valid, or there are too many runs.
        """
        replicates = {
            "seed": self.seeds or (self.base.get("seed", 42),),
            "image_path": self.portraits or (self.base.get("image_path"),),
            "audio_path": self.recordings or (self.base.get("audio_path"),),
        }
        self._check_fields_are_set_once(replicates)
        lists = {name: axis for name, axis in self.axes.items() if not isinstance(axis, dict)}
        for name, values in (lists | {name: getattr(self, name) for name in REPLICATED}).items():
            _check_distinct(name, values)
        count = int(
            np.prod([len(values) for values in (*self.axes.values(), *replicates.values())], dtype=float)
        )
        if not 0 < count <= MAX_CELLS:
            raise InvalidRequest("too many or no runs", received=count, allowed=f"1 to {MAX_CELLS}")
        cells = self._cells(replicates)
        if seeds is None:
            return list(cells)
        most = max(seeds.values())
        added = range(max(self.seeds) + 1, max(self.seeds) + 1 + most - len(self.seeds))
        order = {seed: number for number, seed in enumerate((*self.seeds, *added))}
        cells = self._cells(replicates | {"seed": tuple(order)})
        return [
            cell for cell in cells
            if order[cell.position["seed"]] < seeds[tuple(cell.position[axis] for axis in self.axes)]
        ]  # fmt: skip

    def _check_fields_are_set_once(self, replicates: Mapping[str, object]) -> None:
        taken = ("", *GenerationParams.model_fields, *PAIRED_BY, *COLUMNS, *KINDS)
        for name, axis in self.axes.items():
            if isinstance(axis, dict) and name in taken:
                raise InvalidRequest(
                    "an axis that sets several fields has a name of its own",
                    received=repr(name),
                    remedy="Choose a name that is no parameter, measure or column of the table, for example "
                    "`model`.",
                )
        fields = [_fields(name, axis) for name, axis in self.axes.items()]
        repeated = set[str]().union(*fields) & replicates.keys()
        if repeated:
            raise InvalidRequest(
                "seeds, portraits and recordings are not axes",
                received=", ".join(sorted(repeated)),
                remedy="List them under seeds, portraits and recordings.",
            )
        for one, other in itertools.combinations(fields, 2):
            if one & other:
                raise InvalidRequest("two axes set the same field", received=", ".join(sorted(one & other)))

    def _cells(self, replicates: Mapping[str, tuple[Any, ...]]) -> Iterator[Cell]:
        shown = self.values()
        both = [list(zip(axis, shown[name], strict=True)) for name, axis in self.axes.items()]
        for values in itertools.product(*both):
            fields, position = dict(self.base), {}
            for (name, axis), (value, shown) in zip(self.axes.items(), values, strict=True):
                fields |= axis[value] if isinstance(axis, dict) else {name: value}
                position[name] = shown
            for repeat in itertools.product(*replicates.values()):
                given = dict(zip(replicates, repeat, strict=True))
                known = {name: value for name, value in given.items() if value is not None}
                params = GenerationParams(**{**fields, **known})
                if params.seed == "random":
                    remedy = "List numbers under seeds: by them, finished runs are found again."
                    raise InvalidRequest("a sweep needs its seeds", received="random", remedy=remedy)
                yield Cell(params, position | dict(zip(PAIRED_BY, repeat, strict=True)))

    def values(self) -> dict[str, list[Any]]:
        """The values on each axis as they appear in the table of results."""
        return {name: _table_values(list(axis)) for name, axis in self.axes.items()}

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back."""
        axes = {name: axis if isinstance(axis, dict) else list(axis) for name, axis in self.axes.items()}
        sections = {"base": dict(self.base), "axes": axes}
        listed = {name: list(getattr(self, name)) for name in REPLICATED if getattr(self, name)}
        target = vars(self.target) if self.target else {}
        content = json.loads(json.dumps(versioned(sections | listed | target)))
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _parsed_axis(name: str, values: Any) -> Axis:
    """Parse an axis: a list of values, a range including its end, or named sets of fields."""
    if isinstance(values, list) and values:
        return tuple(typed_value(name, value) for value in values)
    if (
        isinstance(values, Mapping)
        and values
        and all(isinstance(value, Mapping) for value in values.values())
    ):
        return {str(label): _typed(fields) for label, fields in values.items()}
    if numbers := _range(name, values):
        return numbers
    raise InvalidRequest(
        f"the axis `{name}` is not valid",
        received=values,
        allowed="a list of values; {from: 1, to: 5, step: 0.5}, which includes its end; or names, each with "
        "a mapping of the fields it sets",
    )


def _range(name: str, values: Any) -> tuple[int | float, ...] | None:
    """The numbers of a range of a field, including its end; None: the values are no range."""
    if isinstance(values, Mapping) and values.keys() == {"from", "to", "step"}:
        first, last, step = (typed_value(name, values[key]) for key in ("from", "to", "step"))
        if (
            all(isinstance(number, int | float) for number in (first, last, step))
            and step > 0 <= last - first
        ):
            count = int(min((last - first) / step, MAX_CELLS) + 1e-9) + 1
            if count > MAX_CELLS:
                raise InvalidRequest(
                    f"the range of `{name}` has too many values",
                    received=values,
                    allowed=f"up to {MAX_CELLS}",
                )
            integers = all(isinstance(number, int) for number in (first, step))
            return tuple(first + k * step if integers else round(first + k * step, 10) for k in range(count))
    return None


def _check_distinct(name: str, values: Iterable[Any]) -> None:
    """Refuse a value that is listed twice: one run would count as two independent ones.

    Raises:
        InvalidRequest: it names the value.
    """
    seen = set()
    for value in values:
        key = value if isinstance(value, str | int | float | None) else json.dumps(value, sort_keys=True)
        if key in seen:
            raise InvalidRequest(
                f"`{name}` lists a value twice",
                received=value,
                remedy="List it once: an equal run tells nothing new.",
            )
        seen.add(key)


def _target(sections: Mapping[str, Any], seeds: int, runs: int) -> Target | None:
    """The target of an adaptive sweep, whose listed seeds take `runs` runs; None: it has none."""
    given = {name: sections[name] for name in TARGET if sections.get(name) is not None}
    if not given:
        return None
    if missing := [name for name in ("precision", "max_runs") if name not in given]:
        problem = f"an adaptive sweep needs {missing[0]}"
        raise InvalidRequest(problem, received=", ".join(given), remedy=f"Add {missing[0]}.")
    precision, most = _number(float, "precision", given), _number(int, "max_runs", given)
    measure = str(given.get("measure", Target.measure))
    if not 0 < precision < np.inf:
        allowed = "a positive number, half the width of the interval"
        raise InvalidRequest("precision is not valid", received=precision, allowed=allowed)
    if not runs <= most <= MAX_CELLS:
        allowed = f"{runs}, the runs of the listed seeds, to {MAX_CELLS}"
        raise InvalidRequest("max_runs is not valid", received=most, allowed=allowed)
    if measure not in KINDS:
        raise InvalidRequest("no such measure", received=measure, remedy=nearest_name(measure, KINDS))
    if seeds < FEWEST_SEEDS:
        raise InvalidRequest(
            "an adaptive sweep lists too few seeds", received=seeds, allowed=f"at least {FEWEST_SEEDS}"
        )
    return Target(float(precision), int(most), measure)


def _number(kind: type[int] | type[float], name: str, given: Mapping[str, Any]) -> float:
    try:
        number = typed(kind, given[name])
        if isinstance(number, kind | int):
            return number
    except ValueError:
        pass
    allowed = "a whole number" if kind is int else "a number"
    raise InvalidRequest(f"{name} is not valid", received=given[name], allowed=allowed) from None


def _section(sections: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A section of the file, empty if it is left out."""
    found = sections.get(name) or kind()
    if not isinstance(found, kind):
        allowed = (
            "a list; seeds also {from: 1, to: 40, step: 1}"
            if kind is list
            else "a mapping of names to values"
        )
        raise InvalidRequest(f"the section `{name}` is not valid", received=found, allowed=allowed)
    return found


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): typed_value(str(name), value) for name, value in fields.items()}


def _fields(name: str, axis: Axis) -> set[str]:
    """The fields of the request that an axis sets."""
    return set().union(*axis.values()) if isinstance(axis, dict) else {name}


def _first_and_last(axis: Axis) -> Axis:
    """An axis reduced to its first and last value."""
    if isinstance(axis, dict):
        return {label: axis[label] for label in _first_and_last(tuple(axis))}
    return axis[:1] + axis[1:][-1:]


def _table_values(values: list[Any]) -> list[Any]:
    """Values in the table: JSON, if one of them is a list or a mapping, as a column has one type."""
    if all(value is None or isinstance(value, str | int | float | bool) for value in values):
        return values
    return [None if value is None else json.dumps(value) for value in values]
