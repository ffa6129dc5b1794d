"""Tables of finished or interrupted runs: for the terminal (rich), a README (Markdown), a machine (CSV)."""

import csv as csv_writer
import io
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gfpl_flwr.report.runs import Run, display_names

NOTHING = "–"
COMPARISON_COLUMNS = (
    "run",
    "algorithm",
    "data",
    "sites",
    "accuracy %",
    "rounds to 99 %",
    "messages",
    "up",
    "down",
    "seconds",
)
TEXT_COLUMNS = ("run", "algorithm", "data", "head", "rounds")


def human_bytes(count: int | float) -> str:
    """Write a number of bytes with three significant digits and an SI unit (1 kB = 1000 bytes).

    Args:
        count: bytes, at least 0.

    Returns:
        For example ``0 B``, ``999 B``, ``1.23 MB``, ``140 kB``.
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    if value < 999.5:
        return f"{value:.0f} B"
    # 999.6 kB has to become 1.00 MB and not 1000 kB, hence the rounded comparison.
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {units[0]}"


def human_seconds(seconds: float) -> str:
    """Write a duration in seconds with a precision that fits its size: ``0.42``, ``8.1``, ``1204``."""
    return f"{seconds:.2f}" if seconds < 1 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def percent(mean: float, std: float | None = None) -> str:
    """Write a fraction in percent with two decimals, and ``± std`` when it is given; a dash for NaN."""
    if math.isnan(mean):
        return NOTHING
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def comparison(runs: Sequence[Run]) -> Table:
    """Build the table that sets runs side by side, one row a run.

    Accuracy is the unweighted mean ± population standard deviation over sites, in percent; up and down are
    what all sites together sent and received, as measured on the messages.

    Args:
        runs: the runs, in the order of the rows.

    Returns:
        A table for ``rich.print``; its caption explains the marks that occur.
    """
    table = _table(COMPARISON_COLUMNS, caption=_caption(runs))
    for cells in _comparison_cells(runs):
        table.add_row(*map(Text, cells))
    return table


def markdown(runs: Sequence[Run]) -> str:
    """Write the table of :func:`comparison` in Markdown, its caption below it.

    Args:
        runs: the runs, in the order of the rows.

    Returns:
        Lines that end with a newline.
    """
    rule = [":---" if name in TEXT_COLUMNS else "---:" for name in COMPARISON_COLUMNS]
    rows = [list(COMPARISON_COLUMNS), rule, *_comparison_cells(runs)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    caption = _caption(runs)
    return "\n".join(lines + (["", caption] if caption else [])) + "\n"


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
    """Build the log of a run, one row a visit: rounds, messages, bytes, fusion, accuracy and failures.

    The accuracies belong to the last round of the visit: after local training and, where the next visit
    retrained on what was exchanged, after that.

    Args:
        run: the run.

    Returns:
        A table for ``rich.print``.
    """
    trained = {point.round: point.mean for point in run.before_retraining()}
    curve = {point.round: point.mean for point in run.curve()}
    columns = ["visit", "rounds", "messages", "up", "down", "components", "accuracy %"]
    columns += ["retrained %"] if run.retrained_rounds else []
    table = _table([*columns, "failed", "seconds"], title=f"{run.name}: visits")
    for visit in run.visits:
        local, last, merge = visit.first_round <= visit.last_round, visit.last_round, visit.merge
        span = (
            f"{visit.first_round}–{last}"
            if visit.first_round < last
            else str(last)
            if local
            else "retraining"
        )
        cells = [str(visit.visit), span, str(visit.traffic["messages"])]
        cells += [human_bytes(visit.traffic["bytes_up"]), human_bytes(visit.traffic["bytes_down"])]
        cells += [f"{merge.components_in} → {merge.components_out}" if merge else NOTHING]
        cells += [percent(trained[last]) if local and last in trained else NOTHING]
        if run.retrained_rounds:
            cells += [percent(curve[last]) if local and last in run.retrained_rounds else NOTHING]
        cells += [str(sum(not reply.ok for reply in visit.sites)), human_seconds(visit.seconds)]
        table.add_row(*map(Text, cells))
    return table


def heads(run: Run) -> Table:
    """Build the table that sets the inference heads of a run side by side, at the end of the run.

    Args:
        run: the run.

    Returns:
        A table for ``rich.print``; the head that the run reports carries an asterisk.
    """
    columns = ("head", "accuracy %", "lowest site %", "highest site %", "rounds to 99 %")
    table = _table(columns, title=f"{run.name}: inference heads", caption="* the head reported elsewhere")
    for head in run.heads:
        by_site, mean, std = run.final_accuracy(head)
        low, high = (percent(f(by_site.values())) if by_site else NOTHING for f in (min, max))
        cells = (f"{head} *" if head == run.head else head, percent(mean, std), low, high)
        table.add_row(*map(Text, cells), Text(str(run.rounds_to(head=head) or NOTHING)))
    return table


def _comparison_cells(runs: Sequence[Run]) -> list[list[str]]:
    cells = []
    for run, name in zip(runs, display_names(runs), strict=True):
        row, (_, mean, std), totals = _exact(run), run.final_accuracy(), run.totals
        cells.append(
            [
                name if run.status == "completed" else f"{name} ({run.status})",
                row["algorithm"],
                ", ".join(part for part in (row["dataset"], row["partition"]) if part),
                str(row["sites"]),
                percent(mean, std) + (" *" if run.stale_sites else ""),
                str(row["rounds_to_99"] or NOTHING),
                str(totals.messages),
                human_bytes(totals.bytes_up),
                human_bytes(totals.bytes_down),
                human_seconds(totals.seconds),
            ]
        )
    return cells


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
        **run.totals._asdict(),
    }


def _caption(runs: Sequence[Run]) -> str:
    marks = ["Accuracy: unweighted mean ± standard deviation over sites."] if runs else []
    if any(run.stale_sites for run in runs):
        marks.append("* a site whose last reply failed counts with its last known accuracy.")
    return " ".join(marks)


def _table(columns: Sequence[str], *, title: str | None = None, caption: str | None = None) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=title, caption=caption, title_justify="left", caption_justify="left"
    )
    for name in columns:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
    return table
