"""Tables of finished or interrupted runs: for the terminal (rich), a README (Markdown), a machine (CSV).

The tables for the terminal fit 80 columns: what all runs share stands in the title, and names give way to
numbers.
"""

import csv as csv_writer
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gfpl_flwr.report.formatting import NOTHING, human_bytes, human_seconds, percent
from gfpl_flwr.report.runs import Run, display_names

ACCURACY = "accuracy (%),\nmean ± std\nover sites"
SETTINGS = ("algorithm", "data", "sites")
NUMBERS = (ACCURACY, "rounds\nto 99 %", "messages", "up", "down", "time\n(s)")
TEXT_COLUMNS = ("run", *SETTINGS, "head", "rounds")


def comparison(runs: Sequence[Run]) -> Table:
    """Build the table that sets runs side by side, one row a run.

    Accuracy is the unweighted mean ± population standard deviation over sites, in percent; up and down are
    what all sites together sent and received, as measured on the messages. The settings that all runs share
    are in the title, those that differ below the name of the run.

    Args:
        runs: the runs, in the order of the rows.

    Returns:
        A table for ``rich.print``; its caption says what was exchanged and explains the marks that occur.
    """
    shared = _shared(runs)
    table = _table(("run", *NUMBERS), title=_title(shared), caption="\n".join(_notes(runs)))
    for row in _rows(runs):
        name = Text(row["run"])
        own = [row[key] for key in SETTINGS if key not in shared and row[key] != row["run"]]
        name.append("".join(f"\n{setting}" for setting in own), style="dim")
        table.add_row(name, *(Text(row[column]) for column in NUMBERS))
    return table


def markdown(runs: Sequence[Run]) -> str:
    """Write the table of :func:`comparison` in Markdown: the title above it, a list of notes below it.

    Args:
        runs: the runs, in the order of the rows.

    Returns:
        Lines that end with a newline; a setting that not all runs share has a column.
    """
    shared = _shared(runs)
    columns = ["run", *(key for key in SETTINGS if key not in shared), *NUMBERS]
    rule = [":---" if name in TEXT_COLUMNS else "---:" for name in columns]
    rows = [[" ".join(name.split()) for name in columns], rule]
    rows += [[row[name].replace("|", "\\|") for name in columns] for row in _rows(runs)]
    title, notes = _title(shared), _notes(runs)
    lines = [title, ""] if title else []
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *("- " + note.replace("*", "\\*") for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def csv(runs: Sequence[Run]) -> str:
    """Write exact numbers, one row a run: accuracies as fractions, bytes and scalars unrounded, seconds.

    Args:
        runs: the runs, in the order of the rows.

    Returns:
        Comma-separated lines with a header; a number that does not exist is an empty cell.
    """
    rows = [_exact(run) for run in runs]
    out = io.StringIO()
    writer = csv_writer.DictWriter(out, list(rows[0]) if rows else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def visits(run: Run) -> Table:
    """Build the log of a run, one row a visit: rounds, replies, bytes, fusion and accuracy.

    The accuracies belong to the last round of the visit: after local training and, where the next visit began with
    what was exchanged, after the site had retrained on it or taken it over.

    Args:
        run: the run.

    Returns:
        A table for ``rich.print``.
    """
    trained = {point.round: point.mean for point in run.after_training()}
    then = [phase for phase in run.tested_phases if phase != "train"]
    curve = {point.round: point.mean for point in run.curve()}
    columns = ["visit", "rounds", "replies", "up", "down", "fused", "trained\n(%)"]
    columns += [{"retrain": "retrained\n(%)", "received": "received\n(%)"}[phase] for phase in then[:1]]
    caption = "Accuracy: unweighted mean over sites after the last round of the visit."
    table = _table([*columns, "time\n(s)"], title=f"{run.name}: visits", caption=caption)
    for visit in run.visits:
        local, last, merge = visit.first_round <= visit.last_round, visit.last_round, visit.merge
        span = str(last) if local else "retrain"
        span = f"{visit.first_round}–{last}" if visit.first_round < last else span
        replied = sum(reply.ok for reply in visit.sites)
        cells = [str(visit.visit), span, f"{replied}/{len(visit.sites)}"]
        cells += [human_bytes(visit.traffic["bytes_up"]), human_bytes(visit.traffic["bytes_down"])]
        cells += [f"{merge.components_in} → {merge.components_out}" if merge else NOTHING]
        cells += [percent(trained[last]) if local and last in trained else NOTHING]
        if then:
            cells += [percent(curve[last]) if local and last in run.tested_phases[then[0]] else NOTHING]
        table.add_row(*map(Text, [*cells, human_seconds(visit.seconds)]))
    return table


def heads(run: Run) -> Table:
    """Build the table that sets the inference heads of a run side by side, at the end of the run.

    Args:
        run: the run.

    Returns:
        A table for ``rich.print``; the head that the run reports carries an asterisk.
    """
    columns = ("head", ACCURACY, "lowest\nsite (%)", "highest\nsite (%)", "rounds\nto 99 %")
    table = _table(columns, title=f"{run.name}: inference heads", caption="* the head reported elsewhere")
    for head in run.heads:
        by_site, mean, std = run.final_accuracy(head)
        low, high = (percent(f(by_site.values())) if by_site else NOTHING for f in (min, max))
        cells = (f"{head} *" if head == run.head else head, percent(mean, std), low, high)
        table.add_row(*map(Text, cells), Text(str(run.rounds_to(head=head) or NOTHING)))
    return table


def _rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    rows = []
    for run, name in zip(runs, display_names(runs), strict=True):
        (_, mean, std), totals = run.final_accuracy(), run.totals
        numbers = (
            percent(mean, std) + (" *" if run.stale_sites else ""),
            str(run.rounds_to() or NOTHING),
            str(totals.messages),
            human_bytes(totals.bytes_up),
            human_bytes(totals.bytes_down),
            human_seconds(totals.seconds),
        )
        shown = name if run.status == "completed" else f"{name} ({run.status})"
        rows.append({"run": shown, **_settings(run), **dict(zip(NUMBERS, numbers, strict=True))})
    return rows


def _settings(run: Run) -> dict[str, str]:
    row = _exact(run)
    data = ", ".join(part for part in (row["dataset"], row["partition"]) if part)
    return {"algorithm": row["algorithm"], "data": data, "sites": _count(row["sites"], "site")}


def _shared(runs: Sequence[Run]) -> dict[str, str]:
    """Return the settings that are the same in all runs."""
    first, *others = [_settings(run) for run in runs] or [{}]
    return {key: value for key, value in first.items() if all(other[key] == value for other in others)}


def _title(shared: Mapping[str, str]) -> str:
    return " · ".join(value for value in shared.values() if value)


def _notes(runs: Sequence[Run]) -> list[str]:
    names = display_names(runs)
    notes = ["; ".join(f"{name}: {_exchanges(run)}" for name, run in zip(names, runs, strict=True))] if runs else []
    if any(run.stale_sites for run in runs):
        notes.append("* a site whose last reply failed counts with its last known accuracy")
    return notes


def _exchanges(run: Run) -> str:
    rounds = run.exchange_rounds
    if run.first_array_round is None:
        return "sent no tensors"
    down = min((v.first_round for v in run.visits if v.traffic["array_bytes_down"]), default=None)
    said = []
    if rounds:
        first = "the first after" if len(rounds) > 1 else "after"
        said.append(f"{_count(len(rounds), 'exchange')}, {first} round {rounds[0]}")
    # Some algorithms hand a model down before any site has sent anything.
    if down is not None and (not rounds or down <= rounds[0]):
        said.append(f"tensors to the sites before round {down}")
    return ", ".join(said)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _exact(run: Run) -> dict[str, Any]:
    _, mean, std = run.final_accuracy()
    known = not math.isnan(mean)
    return {
        "run": run.name,
        "status": run.status,
        "algorithm": str(run.config.get("algorithm", "")),
        "dataset": str(run.config.get("dataset", "")),
        "partition": str(run.config.get("partition", "")),
        "seed": str(run.config.get("seed", "")),
        "head": run.head,
        "sites": len(run.sites) or run.config.get("num-sites", 0),
        "stale_sites": len(run.stale_sites),
        "failures": len(run.failures),
        "rounds": run.last_round,
        "accuracy_mean": mean if known else "",
        "accuracy_std": std if known else "",
        "rounds_to_99": run.rounds_to() or "",
        "exchanges": len(run.exchange_rounds),
        "first_tensors_round": "" if run.first_array_round is None else run.first_array_round,
        **run.totals._asdict(),
    }


def _table(columns: Sequence[str], *, title: str, caption: str = "") -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(title, style="table.title") if title else None,
        title_justify="left",
        caption=Text(caption, style="table.caption") if caption else None,
        caption_justify="left",
    )
    for name in columns:
        # Folding breaks a cell at its spaces where it can, and never drops a digit as an ellipsis does.
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", vertical="top", overflow="fold")
    return table
