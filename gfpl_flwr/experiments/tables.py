"""The tables of an experiment, from the outcomes of its runs alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gfpl_flwr.experiments.design import Part, Planned
from gfpl_flwr.experiments.outcomes import Outcome
from gfpl_flwr.experiments.sheets import Sheet, csv
from gfpl_flwr.experiments.spread import Interval, interval, paired
from gfpl_flwr.report.formatting import NOTHING, human_bytes

Measure = Callable[[Outcome], float | None]
OURS = "GFPL"
"""The method that the others are set beside, in a part that has a row of this name."""


@dataclass(frozen=True)
class Cells:
    """Outcomes of a part on one page, by the values of its axes.

    Attributes:
        part: of the experiment.
        page: values of the axes without a role.
        outcomes: of all runs, by key.
    """

    part: Part
    page: Mapping[str, str]
    outcomes: Mapping[str, Outcome]

    def planned(self, **roles: str) -> list[Planned]:
        """Return the runs of a cell, by the values that axes have in their roles."""
        wanted = {self.part.roles[role]: value for role, value in roles.items()}
        return [its for its in self.on_page() if all(its.cell[axis] == value for axis, value in wanted.items())]

    def on_page(self) -> list[Planned]:
        """Return the runs of the page."""
        return [its for its in self.part.planned if all(its.cell[axis] == name for axis, name in self.page.items())]

    def values(self, measure: Measure, **roles: str) -> dict[int, float]:
        """Return a number of every finished run of a cell by its seed."""
        found = {}
        for its in self.planned(**roles):
            outcome = self.outcomes.get(its.key)
            value = measure(outcome) if outcome is not None else None
            if value is not None and not math.isnan(value):
                found[its.seed] = value
        return found

    def interval(self, measure: Measure, **roles: str) -> Interval:
        """Return mean and interval over the seeds of a cell."""
        return interval(list(self.values(measure, **roles).values()))

    def of(self, role: str) -> list[str]:
        """Return the values of the axis in a role."""
        return list(self.part.axes[self.part.roles[role]])


def middle(cells: Cells) -> str:
    """Return the value of the columns that is shown where there is room for but one."""
    columns = cells.of("columns")
    return columns[len(columns) // 2]


def own(outcome: Outcome) -> float:
    """Return the accuracy on a site's own classes at the end, in percent, mean over sites."""
    return 100 * outcome.accuracy[outcome.head][0]


def site_std(outcome: Outcome) -> float:
    """Return its standard deviation over sites, in points."""
    return 100 * outcome.accuracy[outcome.head][1]


def trained(outcome: Outcome) -> float:
    """Return the accuracy on a site's own classes after the last local training, in percent."""
    return 100 * outcome.trained


def common(share: str) -> Measure:
    """Return the measure of the accuracy on ``all``, ``seen`` or ``unseen`` classes at the end, in percent."""

    def measure(outcome: Outcome) -> float | None:
        value = outcome.final(share)
        return None if value is None else 100 * value

    return measure


def scalars_a_round(outcome: Outcome) -> float:
    """Return thousands of numbers that all sites together send up, a round."""
    return outcome.up[2] / 1000 / max(1, outcome.curve[-1][0])


def sheets_of(part: Part, outcomes: Mapping[str, Outcome]) -> Iterator[Sheet]:
    """Yield the tables of a part; every part has some, whatever else it is shown as."""
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if part.show in ("methods", "bars"):
            yield from _methods(cells)
        elif part.show == "variants":
            yield _accuracy(cells)
        elif part.show == "lines":
            yield _sweep(cells)


def long_csv(part: Part, outcomes: Mapping[str, Outcome]) -> str:
    """Write exact numbers, one row a run: accuracies as fractions, bytes and scalars unrounded."""
    columns = [
        *part.axes, "seed", "key", "accuracy", "std_over_sites", "trained", "all_classes", "seen_classes",
        "unseen_classes", "rounds_to_99", "messages", "bytes_up", "bytes_down", "scalars_up", "scalars_down",
        "components_in", "components_out", "failures", "seconds",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for its in part.planned:
        outcome = outcomes.get(its.key)
        if outcome is None:
            continue
        merged = outcome.merges[-1][1:] if outcome.merges else (None, None)
        rows.append(
            [
                *its.cell.values(),
                its.seed,
                its.key,
                *outcome.accuracy[outcome.head],
                outcome.trained,
                *(outcome.final(share) for share in ("all", "seen", "unseen")),
                outcome.rounds_to_99,
                outcome.messages,
                outcome.up[0],
                outcome.down[0],
                outcome.up[2],
                outcome.down[2],
                *merged,
                outcome.failures,
                outcome.seconds,
            ]
        )
    return csv(columns, rows)


def _where(cells: Cells) -> str:
    return ", ".join(cells.page.values())


def _name(cells: Cells, what: str) -> str:
    return "-".join([cells.part.name, *(value.lower().replace(" ", "-") for value in cells.page.values()), what])


def _told(value: Interval, digits: int = 2) -> str:
    if not value.count:
        return NOTHING
    half = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


def signed(value: Interval, digits: int = 2) -> str:
    """Write a difference in points with its sign and half of its interval."""
    if not value.count:
        return NOTHING
    half = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:+.{digits}f}{half}"


def _seeds(cells: Cells) -> str:
    counts = sorted(
        {
            len(cells.values(own, rows=row, columns=column))
            for row in cells.of("rows")
            for column in cells.of("columns")
        }
    )
    if counts == [1]:
        return "One seed."
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean ± half the 95 % interval over {told} seeds."


def _methods(cells: Cells) -> Iterator[Sheet]:
    yield _accuracy(cells)
    yield _reach(cells)
    yield _cost(cells)


def _accuracy(cells: Cells) -> Sheet:
    """Accuracy on own classes, method by setting, and what the paper has."""
    columns, where = cells.of("columns"), _where(cells)
    paper = cells.part.paper.get("accuracy", {})
    rows = []
    for row in cells.of("rows"):
        told = []
        for column in columns:
            known = paper.get("/".join([*cells.page.values(), row, column]))
            told.append(_told(cells.interval(own, rows=row, columns=column)) + (f" ({known})" if known else ""))
        spread = interval(
            [v for column in columns for v in cells.values(site_std, rows=row, columns=column).values()]
        )
        rounds = interval(
            [
                v
                for column in columns
                for v in cells.values(lambda its: its.rounds_to_99, rows=row, columns=column).values()
            ]
        )
        rows.append(
            [
                row,
                *told,
                f"{spread.mean:.1f}" if spread.count else NOTHING,
                f"{rounds.mean:.0f}" if rounds.count else NOTHING,
            ]
        )
    notes = [f"Accuracy on the classes that a site holds, in percent, unweighted mean over sites. {_seeds(cells)}"]
    notes.append(
        "std: over sites; to 99 %: rounds to 99 % of the last accuracy; both averaged over columns and seeds."
    )
    if any(key.startswith("/".join(cells.page.values())) for key in paper):
        notes.append("In brackets: the paper's number.")
    title = f"{cells.part.title}: own classes" + (f", {where}" if where else "")
    heads = [cells.part.roles["rows"], *columns, "std", "to 99 %"]
    return Sheet(_name(cells, "accuracy"), title, heads, rows, notes)


def _reach(cells: Cells) -> Sheet:
    """Accuracy on classes that a site never saw, and after local training."""
    column = middle(cells)
    measures = (common("all"), common("seen"), common("unseen"), own, trained)
    rows = [
        [row, *(_told(cells.interval(measure, rows=row, columns=column), 1) for measure in measures)]
        for row in cells.of("rows")
    ]
    heads = [cells.part.roles["rows"], "all", "seen", "unseen", "own", "trained"]
    notes = [
        f"{column}. all, seen, unseen: accuracy on common test images of every class, of those that a site holds, of "
        "those that it does not; own: on its own test images; trained: on these after the last local training, "
        f"before what is handed down last is taken over. {_seeds(cells)}",
    ]
    title = f"{cells.part.title}: all classes" + (f", {_where(cells)}" if cells.page else "")
    return Sheet(_name(cells, "reach"), title, heads, rows, notes)


def _cost(cells: Cells) -> Sheet:
    """What was sent."""
    where = _where(cells)
    paper = cells.part.paper.get("scalars", {})
    rows = []
    for row in cells.of("rows"):
        column = middle(cells)
        outcomes = [
            cells.outcomes[its.key] for its in cells.planned(rows=row, columns=column) if its.key in cells.outcomes
        ]
        if not outcomes:
            rows.append([row, *[NOTHING] * 7])
            continue
        sites = len(outcomes[0].by_site) or 1
        exchanges = sum(1 for _, up, _ in outcomes[0].exchanges if up)
        rows.append(
            [
                row,
                f"{fmean(its.messages for its in outcomes) / sites:.0f}",
                str(exchanges),
                human_bytes(fmean(its.up[0] for its in outcomes) / sites),
                human_bytes(fmean(its.down[0] for its in outcomes) / sites),
                human_bytes(fmean(its.up[0] + its.down[0] for its in outcomes)),
                f"{fmean(map(scalars_a_round, outcomes)):.2f}",
                str(paper.get("/".join([*cells.page.values(), row]), NOTHING)),
            ]
        )
    heads = [cells.part.roles["rows"], "messages", "exchanges", "up", "down", "whole run", "10³ a round", "paper"]
    notes = [
        f"{middle(cells)}, means over seeds. messages, up and down: of one site over the whole run, all "
        "bytes that Flower transmits, accuracies told to the server included; whole run: all sites, both ways.",
        "10³ a round: thousands of numbers that all sites send up, divided by all rounds; paper: its column of that.",
    ]
    title = f"{cells.part.title}: what is sent" + (f", {where}" if where else "")
    return Sheet(_name(cells, "cost"), title, heads, rows, notes)


def _sweep(cells: Cells) -> Sheet:
    """Accuracy along an axis, a column for each line."""
    lines, where = cells.of("lines"), _where(cells)
    rows = []
    for x in cells.of("x"):
        row = [x]
        for line in lines:
            row.append(_told(cells.interval(own, x=x, lines=line)))
            row.append(_told(cells.interval(lambda its: (its.up[0] + its.down[0]) / 1e6, x=x, lines=line), 2))
        rows.append(row)
    heads = [cells.part.roles["x"], *(f"{line}{what}" for line in lines for what in ("", ", MB"))]
    notes = [
        "Accuracy on own classes in percent, mean ± half the 95 % interval over seeds; MB: all sites, both ways."
    ]
    title = cells.part.title + (f", {where}" if where else "")
    return Sheet(_name(cells, "sweep"), title, heads, rows, notes)


def verdicts(part: Part, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[str, str, str, Interval]]:
    """Yield page, column, method, and how much better GFPL is than it on own classes, in points, seed by seed."""
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if part.show != "methods" or OURS not in cells.of("rows"):
            continue
        for column in cells.of("columns"):
            ours = cells.values(own, rows=OURS, columns=column)
            for row in cells.of("rows"):
                if row != OURS:
                    yield _where(cells), column, row, paired(ours, cells.values(own, rows=row, columns=column))
