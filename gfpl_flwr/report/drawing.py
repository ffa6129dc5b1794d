"""What the figures share: style and palette, axes, titles, labels at the ends of lines, and saving."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from gfpl_flwr.report.formatting import human_bytes
from gfpl_flwr.report.runs import Run

# Okabe & Ito (2008), "Color Universal Design"; yellow is left out, it vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e6e6e6"
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D")  # one more round through the palette each
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "#9a9a9a",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a run's name may hold a dollar sign
    "svg.hashsalt": "gfpl-flwr",
    "svg.fonttype": "path",
}
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # rounds, mean and std in percent


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many inches and its axes, with horizontal grid lines."""
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    ax = fig.add_subplot()
    ax.grid(axis="y")
    return fig, ax


def save(fig: Figure, path: str | Path) -> Path:
    """Write the figure without date or random identifier, and return the path.

    Raises:
        ValueError: the path does not end in .png or .svg.
    """
    target = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}.get(target.suffix)
    if metadata is None:
        raise ValueError(f"expected a figure's path to end in .png or .svg, got {target}")
    with context(["default", STYLE]):
        fig.savefig(target, dpi=150, metadata=metadata)
    return target


def evaluated(runs: Sequence[Run]) -> Sequence[Run]:
    """Return the runs as they are, when each has an accuracy to draw.

    Raises:
        ValueError: there is no run, or a run has no accuracy.
    """
    if not runs:
        raise ValueError("expected at least one run to draw, got none")
    for run in runs:
        if not run.final_accuracy().by_site:
            raise ValueError(f"run {run.name} has no accuracy to draw: no site reported one")
    return runs


def line_styles(count: int) -> list[dict[str, Any]]:
    """Return colour, dashes and width of so many lines, no two of the first 28 alike."""
    turns = [divmod(i, len(PALETTE)) for i in range(count)]
    return [
        {"color": PALETTE[place], "linestyle": LINES[turn % len(LINES)], "linewidth": 1.8} for turn, place in turns
    ]


def write_titles(ax: Axes, title: str, subtitle: str) -> None:
    """Write a title and below it a muted subtitle, in as many lines as the width of the figure asks for."""
    below = _wrapped(ax, subtitle, fontsize=9)
    heading = _wrapped(ax, title, fontsize=12, fontweight="bold")
    ax.set_title(heading, loc="left", fontsize=12, fontweight="bold", pad=22 + 12 * below.count("\n"))
    place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points"}
    note = ax.annotate(below, (0, 1), **place, va="bottom", fontsize=9, color=MUTED)
    # It may reach over the labels on the right; the layout would rather shrink the axes.
    note.set_in_layout(False)


def setting(runs: Sequence[Run]) -> str:
    """Return data and partition for the title, where all runs have the same."""
    kinds = {(str(r.config.get("dataset", "")), str(r.config.get("partition", "")), len(r.sites)) for r in runs}
    if len(kinds) > 1:
        return ""
    dataset, partition, count = kinds.pop()
    sites = f"{count} site{'' if count == 1 else 's'}"
    return " · " + ", ".join(part for part in (shorten(dataset), partition, sites) if part)


def percent_axis(ax: Axes, curves: Sequence[Curve]) -> bool:
    """Set the limits and ticks of a percent axis; return whether they cut off the beginning of a curve.

    Everything is shown, unless what follows the first quarter of the rounds would be left with less than a
    third of the height: then that third is kept for it, and the first rounds lie below the axis.
    """
    late = [rounds >= 0.25 * rounds[-1] for rounds, _, _ in curves]
    settled = min(float((mean - std)[keep].min()) for (_, mean, std), keep in zip(curves, late, strict=True))
    lowest = min(float((mean - std).min()) for _, mean, std in curves)
    top = min(100.0, max(float((mean + std).max()) for _, mean, std in curves))
    low = max(0.0, lowest, top - 3 * max(top - settled, 2.0))
    if top - low < 2:
        low, top = max(0.0, (top + low) / 2 - 1), min(100.0, (top + low) / 2 + 1)
    step = next(step for step in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if top - low <= 8 * step)
    low, high = max(0.0, step * math.floor(low / step - 0.1)), min(100.0, step * math.ceil(top / step + 0.1))
    ax.yaxis.set_major_locator(MultipleLocator(step))
    # A line at 100 % must not be half hidden by the edge.
    ax.set_ylim(low, high + 0.015 * (high - low))
    return min(float(mean.min()) for _, mean, _ in curves) < low


def byte_axis(ax: Axes, sent: np.ndarray) -> float:
    """Make x an axis of bytes with a tick per decade (finer when it spans few) and return its right end."""
    positive = sent[sent > 0]
    least, most = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 1.0)
    if positive.size < sent.size:
        ax.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(least)), linscale=0.3)
        left, right = -0.15 * 10.0 ** math.floor(math.log10(least)), 2 * most
    else:
        ax.set_xscale("log")
        # At least a decade, else one point would be shown on an axis of meaningless precision.
        margin = max(1.5, math.sqrt(12 * least / most))
        left, right = least / margin, most * margin
        subs = (1.0,) if most / least > 200 else (1.0, 2.0, 5.0)
        ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_bytes(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(left, right)
    return right


def _tick_bytes(value: float) -> str:
    return human_bytes(value).replace(".00", "").replace(".0 ", " ")


def category_axis(ax: Axes, which: str, names: Sequence[int | str], *, offset: float = 0.0) -> None:
    """Label positions 0, 1, ... with ``names``, leaving labels out where they would touch."""
    axis, limits = (ax.xaxis, ax.set_xlim) if which == "x" else (ax.yaxis, ax.set_ylim)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(names) <= 30 * step)
    shown = range(0, len(names), step)
    axis.set_ticks([place + offset for place in shown], [shorten(str(names[place])) for place in shown])
    limits(offset - 0.5, len(names) - 0.5 + offset)
    axis.set_tick_params(length=0)


def label_ends(
    fig: Figure, ax: Axes, ends: Sequence[tuple[float, float]], values: Sequence[str], names: Sequence[str]
) -> None:
    """Write each line's name and value beside its end, or in a legend when there are too many.

    Args:
        fig, ax: with the lines, the first ones of the axes.
        ends: where the lines end, in units of the data.
        values, names: of the lines.
    """
    names = [shorten(name) for name in names]
    if len(names) > len(PALETTE):
        handles = ax.get_lines()[: len(names)]
        entries = [f"{name}  {value}" for name, value in zip(names, values, strict=True)]
        fig.legend(handles, entries, loc="outside right center", fontsize=8, handlelength=4)
        return
    # Only after a layout is the height of the axes known, and with it how far apart two labels have to be.
    texts = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
    notes = [ax.text(1.025, 0.5, text, transform=ax.transAxes, fontsize=9, va="center") for text in texts]
    fig.draw_without_rendering()
    gap = 28 / 72 * fig.dpi / ax.get_window_extent().height
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform(end)) for end in ends]
    heights = spread([y for _, y in wanted], gap, low=0.04, high=0.95)
    for note, (x, y), height, line in zip(notes, wanted, heights, line_styles(len(names)), strict=True):
        note.set(y=height, color=_darker(line["color"]))
        if abs(y - height) > 0.01 or x < 0.97:
            link = {"color": line["color"], "linewidth": 0.8, "alpha": 0.55, "transform": ax.transAxes}
            ax.add_line(Line2D([x, 1.02], [y, height], clip_on=False, **link))


def spread(values: Sequence[float], gap: float, *, low: float, high: float) -> list[float]:
    """Move values apart until neighbours are at least ``gap`` from each other, each as little as possible.

    Least squares under order and distance is isotonic regression of ``v_i - i gap`` (pool adjacent
    violators); cutting its solution to the bounds is optimal under them as well.

    Args:
        values: wanted positions, in any order.
        gap: least distance between two of them, same unit.
        low: lower bound.
        high: upper bound; exceeded only where the values do not fit between the bounds.

    Returns:
        The positions, in the order of ``values``.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        total, size = values[i] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / size:
            total, size = total + pools[-1][0], size + pools[-1][1]
            pools.pop()
        pools.append((total, size))
    fitted = [total / size for total, size in pools for _ in range(size)]
    top = high - (len(values) - 1) * gap
    moved = [0.0] * len(values)
    for rank, i in enumerate(order):
        moved[i] = max(low, min(top, fitted[rank])) + rank * gap
    return moved


def shorten(name: str) -> str:
    """Return the name, without its middle when it is longer than 26 letters."""
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"


def _wrapped(ax: Axes, text: str, **font: Any) -> str:
    """Break text at spaces so that it ends before the right edge of the figure."""
    fig = ax.figure
    # What stands left of the axes, where the text begins, is never wider than 0.8 inches.
    room = fig.bbox.width - 0.8 * fig.dpi
    probe = fig.text(0, 0, "", **font)
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        probe.set_text(f"{lines[-1]} {word}")
        if probe.get_window_extent().width <= room:
            lines[-1] = probe.get_text()
        else:
            lines.append(word)
    probe.remove()
    return "\n".join(lines)


def _darker(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return 0.75 * red, 0.75 * green, 0.75 * blue
