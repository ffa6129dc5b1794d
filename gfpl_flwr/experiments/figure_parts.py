"""What the figures of experiments share: panels, dots with intervals, and labels on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gfpl_flwr.experiments.spread import Interval
from gfpl_flwr.report.drawing import MARKERS, PALETTE, line_styles, spread


@dataclass(frozen=True)
class Dot:
    """A mean with its interval and the values behind it."""

    name: str
    value: Interval
    each: Sequence[float]


def panels(columns: int, *, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row."""
    fig = Figure(figsize=(max(6.0, 3.6 * columns), height), layout="constrained")
    FigureCanvasAgg(fig)
    axes = [fig.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for ax in axes:
        ax.grid(axis="y")
    return fig, axes


def dots_beside_names(ax: Axes, dots: Sequence[Dot], colours: Sequence[str], *, named: bool) -> None:
    """Draw dots from top to bottom, each on the line of its name."""
    ax.grid(axis="x")
    for place, (dot, colour) in enumerate(zip(dots, colours, strict=True)):
        y = len(dots) - 1 - place
        ax.plot(dot.each, [y] * len(dot.each), marker="o", linestyle="none", markersize=3, color=colour, alpha=0.5)
        if dot.value.count:
            ax.errorbar(
                dot.value.mean, y, xerr=reaching(dot.value), color=colour, marker="o", markersize=7, capsize=3
            )
    ax.set_yticks(range(len(dots)), [dot.name for dot in reversed(dots)] if named else [""] * len(dots))
    ax.set_ylim(-0.6, len(dots) - 0.4)
    ax.tick_params(axis="y", length=0)


def percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of a percent axis around some values, never outside 0 to 100 by more than the points need.

    They are more than a point apart, so that differences of hundredths do not look like any.
    """
    low, high = min(values), max(values)
    room = max(0.6, 0.15 * (high - low))
    return max(-2.0, low - room), min(101.0, high + room)


def ends(value: Interval) -> tuple[float, float]:
    """Return both ends of an interval in percent, cut at 0 and 100; the mean twice where there is none."""
    ((below,), (above,)) = reaching(value)
    return value.mean - below, value.mean + above


@dataclass(frozen=True)
class Label:
    """A name on the right, and how its line or point looks."""

    text: str
    style: Mapping[str, Any]


def reaching(value: Interval) -> list[list[float]]:
    """Return an interval in percent as matplotlib wants error bars, cut at 0 and 100."""
    half = value.half or 0.0
    return [[min(half, value.mean)], [min(half, 100.0 - value.mean)]]


def styles(names: Sequence[str], *, ours: str) -> list[dict[str, Any]]:
    """Return colour, dashes and marker of each name, no two of the first 28 alike; ``ours`` is larger."""
    found = []
    for place, (name, line) in enumerate(zip(names, line_styles(len(names)), strict=True)):
        look = {"marker": MARKERS[place // len(PALETTE) % len(MARKERS)], "markersize": 9 if name == ours else 6}
        found.append(line | look | {"linewidth": 2.4 if name == ours else 1.3})
    return found


def label_right(fig: Figure, ax: Axes, ends: Sequence[tuple[float, float]], labels: Sequence[Label]) -> None:
    """Write names on the right of the axes, each linked to its point and as near to its height as the others let it.

    Args:
        fig, ax: the labels stand outside of the axes.
        ends: points in units of the data.
        labels: of the points.
    """
    notes = [ax.text(1.09, 0.5, label.text, transform=ax.transAxes, fontsize=9, va="center") for label in labels]
    fig.draw_without_rendering()
    gap = 15 / 72 * fig.dpi / ax.get_window_extent().height
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform(end)) for end in ends]
    heights = spread([y for _, y in wanted], gap, low=0.02, high=0.98)
    for note, (x, y), height, label in zip(notes, wanted, heights, labels, strict=True):
        note.set_y(height)
        outside: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False, "color": label.style["color"]}
        shape = {key: label.style[key] for key in ("linestyle", "marker", "markersize") if key in label.style}
        middle = [1.065] if shape.get("linestyle") == "none" else [1.05, 1.08]
        ax.add_line(Line2D(middle, [height] * len(middle), linewidth=2.2, **outside, **shape))
        ax.add_line(Line2D([x, 1.05], [y, height], linewidth=0.7, alpha=0.45, **outside))
