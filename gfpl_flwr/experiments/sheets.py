"""A table as rows of text, and its renderings: for the terminal, Markdown, LaTeX and CSV."""

import csv as csv_writer
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        name: of its files.
        title: one line.
        columns: heads.
        rows: cells, as many a row as there are columns.
        notes: sentences below it.
        text_columns: how many columns from the left are words; the others are numbers.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    text_columns: int = 1


def rich_table(sheet: Sheet) -> Table:
    """Build the table for ``rich.print``."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(sheet.title, style="table.title"),
        title_justify="left",
        caption=Text("\n".join(sheet.notes), style="table.caption") if sheet.notes else None,
        caption_justify="left",
    )
    for place, name in enumerate(sheet.columns):
        table.add_column(name, justify="left" if place < sheet.text_columns else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def markdown(sheet: Sheet) -> str:
    """Write the table in Markdown, its title above and its notes below."""
    rule = [":---" if place < sheet.text_columns else "---:" for place in range(len(sheet.columns))]
    rows = [sheet.columns, rule, *([cell.replace("|", "\\|") for cell in row] for row in sheet.rows)]
    lines = [f"**{sheet.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)]
    lines += ["", *(f"- {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n".join(lines) + "\n"


def latex(sheet: Sheet) -> str:
    """Write the table as a LaTeX ``table`` with the rules of the package booktabs."""
    form = "l" * sheet.text_columns + "r" * (len(sheet.columns) - sheet.text_columns)
    lines = [
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_escaped(sheet.title)}}}",
        f"  \\label{{tab:{sheet.name}}}",
        f"  \\begin{{tabular}}{{{form}}}",
        "    \\toprule",
        "    " + " & ".join(map(_escaped, sheet.columns)) + " \\\\",
        "    \\midrule",
        *("    " + " & ".join(map(_escaped, row)) + " \\\\" for row in sheet.rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        *(f"  \\par\\footnotesize {_escaped(note)}" for note in sheet.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write comma-separated lines with a header; what there is not is an empty cell."""
    out = io.StringIO()
    writer = csv_writer.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return out.getvalue()


def _escaped(text: str) -> str:
    special = {"±": "$\\pm$", "–": "--", "−": "$-$", "→": "$\\to$", "×": "$\\times$", "³": "$^3$", "λ": "$\\lambda$"}
    for sign in "&%$#_{}":
        special[sign] = f"\\{sign}"
    special |= {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
    }
    return "".join(special.get(sign, sign) for sign in text)
