"""An experiment: parts, each a grid of runs over some axes and seeds.

Two runs with the same options are one run, in whatever parts and experiments they stand; but for a scene, see below.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gfpl_flwr.algorithms import defaults, known_fields, of_its_method
from gfpl_flwr.config import ConfigError, Scalar

Options = Mapping[str, Scalar]
SHOWS = {
    "methods": ("rows", "columns"),
    "variants": ("rows", "columns"),
    "lines": ("x", "lines"),
    "bars": ("rows", "columns"),
    "features": (),
}
"""What a part can be shown as, and the roles that its axes have there; one page for each value of all other axes."""

# Options that have no part in a result.
PLACE = {
    "name", "output-dir", "data-dir", "state-dir", "resume", "device", "quorum", "visit-deadline", "ask-again-after",
    "node-deadline", "cohort", "workers", "torch-threads",
}  # fmt: skip
OPTIONS = set(known_fields()) - PLACE - {"seed"}
"""Those that an experiment can set."""
_FIRST = "gfpl.first-exchange"


class ExperimentError(ConfigError):
    """An experiment that cannot be run; the message names the file and what is wrong in it."""


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Planned:
    """One run of an experiment.

    Attributes:
        cell: name of each axis to the name of its value.
        seed: of the run.
        options: those of its method that differ from the defaults, the seed among them.
        scene: whether the models of its sites are looked at, see :mod:`gfpl_flwr.experiments.scene`.
    """

    cell: Mapping[str, str]
    seed: int
    options: Options
    scene: bool = False

    @cached_property
    def key(self) -> str:
        """The name of the run's folder: method, data and a digest of every option that has a part in the result.

        A run with a scene is another one: the models that it takes are gone when a run is done.
        """
        whole = of_its_method(defaults() | dict(self.options))
        algorithm = str(whole["algorithm"])
        told = {key: value for key, value in whole.items() if key not in PLACE} | (
            {"scene": True} if self.scene else {}
        )
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]
        dataset = str(whole["dataset"]).rpartition("/")[2].replace(":", "-")
        return f"{algorithm}-{dataset}-{digest}"

    @property
    def words(self) -> str:
        """What a person is told of the run: values of its axes, bare numbers with their axis, and the seed."""
        values = (f"{axis} = {name}" if _is_number(name) else name for axis, name in self.cell.items())
        return ", ".join([*values, f"seed {self.seed}"])

    @property
    def rounds(self) -> int:
        """Local rounds of the run."""
        return int(self.options.get("rounds", defaults()["rounds"]))


@dataclass(frozen=True)
class Part:
    """A grid of runs, and how it is shown.

    Attributes:
        name: of its files.
        title: one line above table or figure.
        show: a key of :data:`SHOWS`.
        roles: role of an axis in what is shown to the name of the axis.
        axes: name of each axis to its values, each with the options that it sets.
        options: of every run.
        seeds: of every cell.
        more_seeds: further seeds of the cells that have some values: pairs of values by axis, and seeds.
        only_seeds: which of a cell's seeds are wanted; None for all.
        num_seeds: how many of these, from the first; None for all.
        exceptions: options of the cells that have some values: pairs of values by axis, and options.
        left_out: cells that there are none of, by their values of some axes.
        paper: what the paper says of a cell, by the part's own names.
        rounds: local rounds of every run instead of its own, with T0 in proportion.
        changes: options of every run that come before all others.
    """

    name: str
    title: str
    show: str
    roles: Mapping[str, str]
    axes: Mapping[str, Mapping[str, Options]]
    options: Options = field(default_factory=dict)
    seeds: Sequence[int] = (1,)
    more_seeds: Sequence[tuple[Mapping[str, str], Sequence[int]]] = ()
    only_seeds: Sequence[str] | None = None
    num_seeds: int | None = None
    exceptions: Sequence[tuple[Mapping[str, str], Options]] = ()
    left_out: Sequence[Mapping[str, str]] = ()
    paper: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    changes: Options = field(default_factory=dict)

    @property
    def pages(self) -> list[dict[str, str]]:
        """The values of the axes without a role: a table or figure for each."""
        free = [axis for axis in self.axes if axis not in self.roles.values()]
        values = itertools.product(*(self.axes[axis] for axis in free))
        return [dict(zip(free, chosen, strict=True)) for chosen in values]

    @cached_property
    def planned(self) -> tuple[Planned, ...]:
        """Every run, cell by cell."""
        return tuple(self._runs())

    def _runs(self) -> Iterator[Planned]:
        for chosen in itertools.product(*self.axes.values()):
            cell = dict(zip(self.axes, chosen, strict=True))
            if any(_has(cell, where) for where in self.left_out):
                continue
            options = dict(self.options)
            for axis, value in cell.items():
                options |= self.axes[axis][value]
            for where, its in self.exceptions:
                options |= its if _has(cell, where) else {}
            options = (options if self.rounds is None else _moved(options, self.rounds)) | dict(self.changes)
            for seed in self._seeds_of(cell):
                yield Planned(cell, seed, of_its_method(options | {"seed": seed}), scene=self.show == "features")

    def _seeds_of(self, cell: Mapping[str, str]) -> list[int]:
        more = [seed for where, seeds in self.more_seeds if _has(cell, where) for seed in seeds]
        every = dict.fromkeys([*self.seeds, *more])
        return [seed for seed in every if _wanted(str(seed), self.only_seeds)][: self.num_seeds]

    def names(self, axis: str) -> set[str]:
        """Return the values of an axis, of ``seed`` or of ``part``, as ``--only`` knows them."""
        if axis == "part":
            return {self.name}
        if axis == "seed":
            return {str(seed) for seeds in [self.seeds, *(more for _, more in self.more_seeds)] for seed in seeds}
        return set(self.axes.get(axis, ()))


@dataclass(frozen=True)
class Experiment:
    """Some parts under one title.

    Attributes:
        name: of its file.
        title, source: what it measures, and which table or figure of which paper it is.
        parts: of it.
    """

    name: str
    title: str
    source: str
    parts: Sequence[Part]

    def runs(self) -> dict[str, Planned]:
        """Return every run once, by its key."""
        return {its.key: its for part in self.parts for its in part.planned}

    def only(
        self,
        chosen: Mapping[str, Sequence[str]],
        *,
        seeds: int | None = None,
    ) -> "Experiment":
        """Return a smaller experiment.

        Args:
            chosen: name of an axis, ``seed`` or ``part`` to the values that are wanted, upper and lower case alike.
            seeds: how many of a cell's seeds, from the first.

        Raises:
            ExperimentError: an axis or value that does not exist, or values that no run has together.
        """
        parts = [part for part in self.parts if _wanted(part.name, chosen.get("part"))]
        axes = {axis for part in parts for axis in part.axes}
        if unknown := [axis for axis in chosen if axis not in axes | {"part", "seed"}]:
            raise ExperimentError(
                f"{self.name} has no axis {unknown[0]}: it has {', '.join(sorted(axes))}, seed, and part"
            )
        for axis, values in chosen.items():
            known = set().union(*(part.names(axis) for part in self.parts))
            if wrong := [value for value in values if not _wanted(value, list(known))]:
                raise ExperimentError(
                    f"{self.name}: {axis} {wrong[0]!r} is unknown: known are {', '.join(sorted(known))}"
                )
        smaller = replace(
            self,
            parts=[
                replace(
                    part,
                    axes={
                        axis: {name: its for name, its in values.items() if _wanted(name, chosen.get(axis))}
                        for axis, values in part.axes.items()
                    },
                    only_seeds=chosen.get("seed"),
                    num_seeds=seeds,
                )
                for part in parts
            ],
        )
        if not smaller.runs():
            told = ", ".join(f"{axis} = {' or '.join(values)}" for axis, values in chosen.items())
            raise ExperimentError(f"{self.name} has no run with {told}")
        return smaller

    def with_changes(self, *, rounds: int | None = None, changes: Options | None = None) -> "Experiment":
        """Return the experiment with other options in every run: another one, named and titled after them.

        Args:
            rounds: local rounds instead of its own; T0 moves in proportion.
            changes: options of every run. What the paper says is left out: it is no longer about the same.

        Raises:
            ExperimentError: an option that is unknown, or has no part in a result; the seed, or the rounds.
        """
        changes = dict(changes or {})
        if "seed" in changes:
            raise ExperimentError("seed: the seeds are the experiment's own; --only seed=N chooses among them")
        if "rounds" in changes:
            raise ExperimentError("rounds: --rounds N sets them, and T0 in proportion")
        check_keys(changes, OPTIONS, self.name)
        told = [*([f"rounds = {rounds}"] if rounds else []), *(f"{key} = {its}" for key, its in changes.items())]
        if not told:
            return self
        return replace(
            self,
            name="-".join([self.name, *(its.replace(" = ", "-").replace("/", "-") for its in told)]),
            title=f"{self.title}, with {', '.join(told)}",
            parts=[
                replace(part, title=f"{part.title}, with {', '.join(told)}", rounds=rounds, changes=changes, paper={})
                for part in self.parts
            ],
        )

    def check_names(self, chosen: "Experiment") -> None:
        """Check that the name of every value still tells what its runs have after :meth:`with_changes`.

        Args:
            chosen: what :meth:`only` made of this one; the values of the others name no run.

        Raises:
            ExperimentError: a change overrides what an axis sets; names the option, the axis and the value.
        """
        whole = {part.name: part for part in self.parts}
        for part in chosen.parts:
            for axis, values in part.axes.items():
                every = {key for options in whole[part.name].axes[axis].values() for key in options}
                for name, options in values.items():
                    told = set(options) or every  # one without options names the defaults of what the others set
                    taken = sorted(told & part.changes.keys())
                    # T0 that moves with the rounds of its own value is still in the same proportion.
                    if part.rounds is not None and _FIRST in told and "rounds" not in told:
                        taken.append(_FIRST)
                    if taken:
                        raise ExperimentError(
                            f"{taken[0]} is set by the axis {axis}, whose {name!r} would then name something else; "
                            "leave it out by --only, or vary the option in a copy of the experiment's file"
                        )


def check_keys(table: Mapping[str, Any], known: set[str], what: str) -> None:
    """Refuse a table with a key that is not known; ``what`` says where it stands."""
    if unknown := [key for key in table if key not in known]:
        raise ExperimentError(f"{what}: unknown key {unknown[0]!r}, known are {', '.join(sorted(known))}")


def _has(cell: Mapping[str, str], where: Mapping[str, str]) -> bool:
    return all(cell.get(axis) == value for axis, value in where.items())


def _wanted(name: str, values: Sequence[str] | None) -> bool:
    return values is None or name.casefold() in {value.casefold() for value in values}


def _moved(options: Options, rounds: int) -> dict[str, Scalar]:
    """Return options with another number of rounds, and T0 where it was in proportion."""
    before, first = (options.get(key, defaults()[key]) for key in ("rounds", _FIRST))
    return {**options, "rounds": rounds, _FIRST: max(1, round(int(first) * rounds / int(before)))}
