"""The tables of an experiment, from the outcomes of its runs alone."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from gfpl_flwr.experiments.cells import OURS, Cells, common, own, scalars_a_round, sent, site_std, trained
from gfpl_flwr.experiments.design import Part
from gfpl_flwr.experiments.outcomes import Outcome
from gfpl_flwr.experiments.sheets import Sheet, csv
from gfpl_flwr.experiments.spread import Interval, interval, paired
from gfpl_flwr.report.formatting import NOTHING, human_bytes


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
    columns = cells.of("columns")
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
    title = f"{cells.part.title}: own classes" + (f", {cells.where}" if cells.page else "")
    heads = [cells.part.roles["rows"], *columns, "std", "to 99 %"]
    return Sheet(cells.stem("accuracy"), title, heads, rows, notes)


def _reach(cells: Cells) -> Sheet:
    """Accuracy on classes that a site never saw, and after local training."""
    column = cells.middle
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
    title = f"{cells.part.title}: all classes" + (f", {cells.where}" if cells.page else "")
    return Sheet(cells.stem("reach"), title, heads, rows, notes)


def _cost(cells: Cells) -> Sheet:
    """What was sent."""
    paper = cells.part.paper.get("scalars", {})
    rows = []
    for row in cells.of("rows"):
        column = cells.middle
        outcomes = cells.finished(rows=row, columns=column)
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
                human_bytes(fmean(map(sent, outcomes))),
                f"{fmean(map(scalars_a_round, outcomes)):.2f}",
                str(paper.get("/".join([*cells.page.values(), row]), NOTHING)),
            ]
        )
    heads = [cells.part.roles["rows"], "messages", "exchanges", "up", "down", "whole run", "10³ a round", "paper"]
    notes = [
        f"{cells.middle}, means over seeds. messages, up and down: of one site over the whole run, all "
        "bytes that Flower transmits, accuracies told to the server included; whole run: all sites, both ways.",
        "10³ a round: thousands of numbers that all sites send up, divided by all rounds; paper: its column of that.",
    ]
    title = f"{cells.part.title}: what is sent" + (f", {cells.where}" if cells.page else "")
    return Sheet(cells.stem("cost"), title, heads, rows, notes)


def _sweep(cells: Cells) -> Sheet:
    """Accuracy along an axis, a column for each line."""
    lines = cells.of("lines")
    rows = []
    for x in cells.of("x"):
        row = [x]
        for line in lines:
            row.append(_told(cells.interval(own, x=x, lines=line)))
            row.append(_told(cells.interval(lambda its: sent(its) / 1e6, x=x, lines=line), 2))
        rows.append(row)
    heads = [cells.part.roles["x"], *(f"{line}{what}" for line in lines for what in ("", ", MB"))]
    notes = [
        "Accuracy on own classes in percent, mean ± half the 95 % interval over seeds; MB: all sites, both ways."
    ]
    title = cells.part.title + (f", {cells.where}" if cells.page else "")
    return Sheet(cells.stem("sweep"), title, heads, rows, notes)


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
                    yield cells.where, column, row, paired(ours, cells.values(own, rows=row, columns=column))
