"""The tables of an experiment, from the outcomes of its runs alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from gfpl_flwr.experiments.cells import (
    OURS,
    Cells,
    Measure,
    common,
    own,
    scalars_a_round,
    sent,
    site_std,
    trained,
    with_head,
)
from gfpl_flwr.experiments.design import Part
from gfpl_flwr.experiments.outcomes import Outcome
from gfpl_flwr.experiments.sheets import Sheet, csv
from gfpl_flwr.experiments.spread import Interval, paired
from gfpl_flwr.report.formatting import NOTHING, human_bytes


def sheets_of(part: Part, outcomes: Mapping[str, Outcome]) -> Iterator[Sheet]:
    """Yield the tables of a part, of every page that has an outcome."""
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if cells.empty:
            continue
        if part.show in ("methods", "variants", "bars"):
            yield _accuracy(cells)
            yield _over_sites(cells)
        if part.show == "methods":
            yield from _heads(cells)
            yield _reach(cells)
            yield _cost(cells)
        if part.show == "lines":
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


def plain(value: Interval, digits: int = 2, *, most: int = 0, sign: str = "") -> str:
    """Write a mean and half of its interval, and how many seeds it is over where that is fewer than the most.

    Args:
        value: over seeds.
        digits: after the point.
        most: seeds of the cells beside it.
        sign: ``"+"`` for a difference.
    """
    if not value.count:
        return NOTHING
    half = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:{sign}.{digits}f}{half}" + (f" [{value.count}]" if value.count < most else "")


def most_seeds(cells: Cells, columns: Sequence[str]) -> int:
    """Return the most seeds that a cell of some columns has."""
    return max(len(cells.finished(rows=row, columns=column)) for row in cells.of("rows") for column in columns)


def told_seeds(counts: Iterable[int]) -> str:
    """Say over how many seeds the means of a table are; numbers without any count for nothing."""
    known = {count for count in counts if count}
    if known == {1}:
        return "One seed."
    fewer = ", or as many as stand in square brackets" if len(known) > 1 else ""
    return f"Mean ± half the 95 % interval over {max(known)} seeds{fewer}."


def _seeds(cells: Cells, columns: Sequence[str]) -> str:
    return told_seeds(len(cells.finished(rows=row, columns=column)) for row in cells.of("rows") for column in columns)


def _titled(cells: Cells, what: str) -> str:
    return f"{cells.part.title}: {what}" + (f", {cells.where}" if cells.page else "")


def _accuracy(cells: Cells) -> Sheet:
    """Accuracy on own classes, row by column, and what the paper has."""
    columns = cells.of("columns")
    most = most_seeds(cells, columns)
    paper = cells.part.paper.get("accuracy", {})
    rows = []
    for row in cells.of("rows"):
        words = [row]
        for column in columns:
            known = paper.get("/".join([*cells.page.values(), row, column]))
            found = plain(cells.interval(own, rows=row, columns=column), most=most)
            words.append(found + (f" ({known})" if known else ""))
        rows.append(words)
    notes = [
        f"Accuracy on the classes that a site holds, in percent, unweighted mean over sites. {_seeds(cells, columns)}"
    ]
    if any("(" in word for words in rows for word in words[1:]):
        notes.append("In brackets: the paper's number.")
    heads = [cells.part.roles["rows"], *columns]
    return Sheet(cells.stem("accuracy"), _titled(cells, "own classes"), heads, rows, notes)


def _over_sites(cells: Cells) -> Sheet:
    """How far sites lie apart, and how soon a run is near its end."""
    columns = cells.of("columns")
    rows = []
    for row in cells.of("rows"):
        words = [row]
        for column in columns:
            spread = cells.interval(site_std, rows=row, columns=column)
            rounds = cells.interval(lambda its: its.rounds_to_99, rows=row, columns=column)
            words.append(f"{spread.mean:.1f}" if spread.count else NOTHING)
            words.append(f"{rounds.mean:.0f}" if rounds.count else NOTHING)
        rows.append(words)
    heads = [cells.part.roles["rows"], *(f"{column}{what}" for column in columns for what in (": std", ", to 99 %"))]
    notes = [
        "std: population standard deviation over sites of the accuracy on own classes, in points; to 99 %: first "
        "round with 99 % of the last accuracy; means over seeds."
    ]
    return Sheet(cells.stem("sites"), _titled(cells, "from site to site"), heads, rows, notes)


def _heads(cells: Cells) -> Iterator[Sheet]:
    """Every way of inference of the methods that have several."""
    columns = cells.of("columns")
    most = most_seeds(cells, columns)
    rows = []
    for row in cells.of("rows"):
        heads = sorted({head for its in cells.finished(rows=row) for head in its.accuracy})
        for head in heads if len(heads) > 1 else []:
            found = [cells.interval(with_head(head), rows=row, columns=column) for column in columns]
            rows.append([row, head, *(plain(value, most=most) for value in found)])
    if rows:
        notes = [f"As above, for every way in which a site can classify. {_seeds(cells, columns)}"]
        title = _titled(cells, "ways of inference")
        heads = [cells.part.roles["rows"], "inference", *columns]
        yield Sheet(cells.stem("inference"), title, heads, rows, notes, text_columns=2)


def _reach(cells: Cells) -> Sheet:
    """Accuracy on classes that a site never saw, and after local training."""
    column = cells.middle
    measures = (common("all"), common("seen"), common("unseen"), own, trained)
    most = most_seeds(cells, [column])
    rows = [
        [row, *(plain(cells.interval(measure, rows=row, columns=column), 1, most=most) for measure in measures)]
        for row in cells.of("rows")
    ]
    heads = [cells.part.roles["rows"], "all", "seen", "unseen", "own", "trained"]
    notes = [
        f"{column}. all, seen, unseen: accuracy on common test images of every class, of those that a site holds, of "
        "those that it does not; own: on its own test images; trained: on these after the last local training, "
        f"before what is handed down last is taken over. {_seeds(cells, [column])}",
    ]
    return Sheet(cells.stem("reach"), _titled(cells, "all classes"), heads, rows, notes)


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
        rows.append(
            [
                row,
                f"{fmean(its.messages for its in outcomes) / sites:.0f}",
                str(outcomes[0].exchanges),
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
    return Sheet(cells.stem("cost"), _titled(cells, "what is sent"), heads, rows, notes)


def _sweep(cells: Cells) -> Sheet:
    """Accuracy along an axis, a column for each line."""
    lines = cells.of("lines")
    accuracy = {line: cells.along(own, line) for line in lines}
    size = {line: cells.along(lambda its: sent(its) / 1e6, line) for line in lines}
    counts = [its.count for along in accuracy.values() for its in along.values()]
    rows = []
    for x in cells.of("x"):
        row = [x]
        for line in lines:
            row.append(plain(accuracy[line][x], most=max(counts)))
            row.append(plain(size[line][x], 2))
        rows.append(row)
    heads = [cells.part.roles["x"], *(f"{line}{what}" for line in lines for what in ("", ", MB"))]
    notes = [
        f"Accuracy on own classes in percent; MB: of all sites, both ways. {told_seeds(counts)} A column is over the "
        "seeds that all its values have."
    ]
    if 1 in counts:
        notes.append("Nothing follows from one seed: what lies between its rows can be the seed's alone.")
    title = cells.part.title + (f", {cells.where}" if cells.page else "")
    return Sheet(cells.stem("sweep"), title, heads, rows, notes)


def verdicts(
    part: Part, outcomes: Mapping[str, Outcome], theirs: Measure = own
) -> Iterator[tuple[str, str, str, Interval]]:
    """Yield page, column, row, and how much better GFPL is than it on own classes, in points, seed by seed.

    Args:
        part: with a row of GFPL, or nothing is yielded.
        outcomes: by key.
        theirs: what of the other rows is set beside the accuracy of the model that a site of GFPL would use.
    """
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if part.show not in ("methods", "variants") or OURS not in cells.of("rows"):
            continue
        for column in cells.of("columns"):
            ours = cells.values(own, rows=OURS, columns=column)
            for row in cells.of("rows"):
                if row != OURS:
                    yield cells.where, column, row, paired(ours, cells.values(theirs, rows=row, columns=column))
