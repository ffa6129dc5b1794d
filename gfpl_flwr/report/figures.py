"""Figures of finished or interrupted runs, as PNG or SVG by the suffix of the path.

Each figure is a pair: ``<name>_figure`` builds a matplotlib ``Figure`` (no pyplot, no window, no style of the
user's) and ``<name>`` writes it. The same runs give the same bytes with the same matplotlib: no date and no
random identifier is written. Colours are Okabe and Ito's, which people who confuse colours can tell apart.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from gfpl_flwr.report.runs import Run, display_names
from gfpl_flwr.report.tables import human_bytes

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
DOTS_UP_TO = 600  # cells of the label figure beyond which dots give way to a heat map


def accuracy(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`accuracy_figure` and return the path."""
    return _save(accuracy_figure(runs), path)


def communication(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`communication_figure` and return the path."""
    return _save(communication_figure(runs), path)


def sites(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`sites_figure` and return the path."""
    return _save(sites_figure(runs), path)


def labels(run: Run, path: str | Path) -> Path:
    """Write :func:`labels_figure` and return the path."""
    return _save(labels_figure(run), path)


def merge(run: Run, path: str | Path) -> Path:
    """Write :func:`merge_figure` and return the path."""
    return _save(merge_figure(run), path)


def accuracy_figure(runs: Sequence[Run]) -> Figure:
    """Draw accuracy by local round: a line per run, a band of ± 1 standard deviation over sites.

    Args:
        runs: at least one run, each with at least one evaluated round.

    Returns:
        The figure; line ``i`` of its axes is run ``i``, rounds against percent.

    Raises:
        ValueError: there is no run, or a run has no accuracy.
    """
    with context(["default", STYLE]):
        curves = [_percent_curve(run) for run in _evaluated(runs)]
        fig, ax = _canvas(8.0, 4.5)
        shade = 0.13 if len(runs) <= 4 else 0.05
        marked = any(_marks(run, rounds) for run, (rounds, _, _) in zip(runs, curves, strict=True))
        for run, (rounds, mean, std), line in zip(runs, curves, _lines(runs), strict=True):
            points = [0] if len(rounds) == 1 else _marks(run, rounds)
            ax.plot(rounds, mean, **line, marker="o", markersize=4, markerfacecolor="white", markevery=points)
            ax.fill_between(rounds, mean - std, mean + std, color=line["color"], alpha=shade, linewidth=0)
        cut = _accuracy_axis(ax, curves)
        subtitle = "Mean ± 1 standard deviation over sites"
        subtitle += "; circles: rounds of an exchange" if marked else ""
        subtitle += "; first rounds below the axis" if cut else ""
        _title(ax, f"Accuracy by round{_setting(runs)}", subtitle)
        ax.set_xlabel("Local round")
        ax.set_ylabel("Accuracy on each site's own test data (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        last = max(float(rounds[-1]) for rounds, _, _ in curves)
        ax.set_xlim(*((0, 1.01 * last) if last > 1 else (0, 1.5)))
        ends = [(float(rounds[-1]), float(mean[-1])) for rounds, mean, _ in curves]
        _label_ends(fig, ax, ends, [f"{y:.1f} %" for _, y in ends], runs)
        return fig


def communication_figure(runs: Sequence[Run]) -> Figure:
    """Draw accuracy against the data sent until then, both ways and over all sites, one point a visit.

    A dotted line carries each run's final accuracy on to the right, so that a run which sends almost nothing
    can be compared with those that send much.

    Args:
        runs: at least one run, each with at least one evaluated round.

    Returns:
        The figure; line ``i`` of its axes is run ``i``, bytes against percent.

    Raises:
        ValueError: there is no run, or a run has no accuracy.
    """
    with context(["default", STYLE]):
        curves = [_traffic_curve(run) for run in _evaluated(runs)]
        fig, ax = _canvas(8.0, 4.5)
        right = _byte_axis(ax, np.concatenate([sent for sent, _ in curves]))
        for (sent, mean), line in zip(curves, _lines(runs), strict=True):
            ax.plot(sent, mean, **line, marker="o", markersize=4 if len(sent) <= 40 else 0)
        for (sent, mean), line in zip(curves, _lines(runs), strict=True):
            ax.plot(
                sent[-1:], mean[-1:], color=line["color"], marker="o", markersize=9, markeredgecolor="white"
            )
            ax.plot([sent[-1], right], [mean[-1], mean[-1]], color=line["color"], linewidth=1, linestyle=":")
        cut = _accuracy_axis(ax, [(np.arange(len(mean)), mean, np.zeros(len(mean))) for _, mean in curves])
        subtitle = "Sent by and to all sites; mean accuracy over sites; large point: end of the run"
        subtitle += "; first points below the axis" if cut else ""
        _title(ax, f"Accuracy against data sent{_setting(runs)}", subtitle)
        ax.set_xlabel("Data sent since the start of the run (log scale)")
        ax.set_ylabel("Accuracy on each site's own test data (%)")
        ends = [(right, float(mean[-1])) for _, mean in curves]
        values = [f"{mean[-1]:.1f} %, {human_bytes(float(sent[-1]))}" for sent, mean in curves]
        _label_ends(fig, ax, ends, values, runs)
        return fig


def sites_figure(runs: Sequence[Run]) -> Figure:
    """Draw the final accuracy of every site, a dot per run.

    Dots and not bars: a bar has to start at zero, where sites between 95 and 100 % look alike.

    Args:
        runs: at least one run, each with at least one evaluated round.

    Returns:
        The figure; line ``i`` of its axes is run ``i``, sites against percent. A hollow dot is a site whose
        last reply failed.

    Raises:
        ValueError: there is no run, or a run has no accuracy.
    """
    with context(["default", STYLE]):
        finals = [run.final_accuracy() for run in _evaluated(runs)]
        numbers = sorted({site for final in finals for site in final.by_site})
        fig, ax = _canvas(min(14.0, max(8.0, 2.5 + 0.25 * len(numbers))), 4.0)
        dots: dict[str, Any] = {"markersize": 6, "linestyle": "none"}
        shapes = [MARKERS[i // len(PALETTE) % len(MARKERS)] for i in range(len(runs))]
        # Side by side within the column of a site, so that equal values do not hide one another.
        shifts = 0.18 * (np.arange(len(runs)) - (len(runs) - 1) / 2) * min(1.0, 4 / len(runs))
        places = [
            np.array([numbers.index(site) for site in f.by_site]) + x
            for f, x in zip(finals, shifts, strict=True)
        ]
        values = [100 * np.array(list(final.by_site.values())) for final in finals]
        for x, y, line, shape in zip(places, values, _lines(runs), shapes, strict=True):
            ax.plot(x, y, **dots, color=line["color"], marker=shape, zorder=3)
        for run, final, x, y, line, shape in zip(
            runs, finals, places, values, _lines(runs), shapes, strict=True
        ):
            stale = np.array([site in run.stale_sites for site in final.by_site])
            ax.plot(
                x[stale],
                y[stale],
                **dots,
                color=line["color"],
                marker=shape,
                markerfacecolor="white",
                zorder=4,
            )
            ax.axhline(100 * final.mean, color=line["color"], linewidth=1, linestyle=":", zorder=2)
        ax.grid(axis="x")
        everything = np.concatenate(values)
        _accuracy_axis(ax, [(np.ones(everything.size), everything, np.zeros(everything.size))])
        subtitle = "Last known accuracy; dotted: mean over sites"
        subtitle += "; hollow: the last reply failed" if any(run.stale_sites for run in runs) else ""
        _title(ax, f"Accuracy of each site{_setting(runs)}", subtitle)
        ax.set_xlabel("Site")
        ax.set_ylabel("Accuracy on own test data (%)")
        _index_axis(ax, "x", numbers)
        ends = [(len(numbers) - 0.5, float(100 * final.mean)) for final in finals]
        texts = [f"{100 * final.mean:.1f} ± {100 * final.std:.1f} %" for final in finals]
        _label_ends(fig, ax, ends, texts, runs)
        return fig


def labels_figure(run: Run) -> Figure:
    """Draw how many training samples of each class each site holds: areas of dots, or shades of many cells.

    Args:
        run: a run in which at least one site told its labels.

    Returns:
        The figure; its first collection holds the dots (sites against classes) or the shades.

    Raises:
        ValueError: no site told its labels.
    """
    held = run.labels
    if not held:
        raise ValueError(f"run {run.name} has no labels to draw: no site told its classes")
    classes, numbers = range(1 + max(label for counts in held.values() for label in counts)), list(held)
    table = np.array([[held[site].get(label, 0) for site in numbers] for label in classes])
    with context(["default", STYLE]):
        fig, ax = _canvas(8.0, min(7.0, max(3.0, 1.4 + 0.24 * len(classes))))
        if table.size <= DOTS_UP_TO:
            rows, columns = np.nonzero(table)
            unit = 150 / max(1, table.max())
            ax.scatter(
                columns, rows, s=table[rows, columns] * unit, color=PALETTE[0], alpha=0.85, linewidths=0
            )
            for count in sorted({int(table.max()), max(1, int(table.max()) // 4)}, reverse=True):
                ax.scatter(
                    [], [], s=count * unit, color=PALETTE[0], alpha=0.85, linewidths=0, label=str(count)
                )
            fig.legend(loc="outside right upper", title="samples", labelspacing=1.0)
            ax.grid(axis="x")
        else:
            shades = LinearSegmentedColormap.from_list("counts", ["#dbe9f4", PALETTE[0], "#00263d"])
            mesh = ax.pcolormesh(np.ma.masked_equal(table, 0), cmap=shades, vmin=0, rasterized=True)
            fig.colorbar(mesh, ax=ax, label="samples", pad=0.01, aspect=40)
            ax.grid(visible=False)
        _title(
            ax,
            f"Training data by site{_setting([run])}",
            f"{table.sum():,} samples; {(table > 0).sum(axis=0).mean():.1f} classes a site on average",
        )
        ax.set_xlabel("Site")
        ax.set_ylabel("Class")
        offset = 0.0 if table.size <= DOTS_UP_TO else 0.5
        _index_axis(ax, "x", numbers, offset=offset)
        _index_axis(ax, "y", classes, offset=offset)
        return fig


def merge_figure(run: Run) -> Figure:
    """Draw the components of each class before and after the run's last fusion.

    Args:
        run: a run with at least one fusion.

    Returns:
        The figure; its axes hold two groups of bars, "in" and "out", a bar per class each.

    Raises:
        ValueError: nothing was fused.
    """
    if not run.merges:
        raise ValueError(f"run {run.name} has no fusion to draw")
    last = run.merges[-1]
    classes = range(1 + max(last.by_class, default=0))
    with context(["default", STYLE]):
        fig, ax = _canvas(min(14.0, max(8.0, 1.5 + 0.12 * len(classes))), 3.8)
        places = np.arange(len(classes))
        before, after = (np.array([last.by_class.get(c, (0, 0))[i] for c in classes]) for i in (0, 1))
        ax.bar(places, before, width=0.72, color="#c4d9e8", label="in: sent by the sites")
        ax.bar(places, after, width=0.72, color=PALETTE[0], label="out: after fusion")
        if len(classes) <= 20:
            for place, n, k in [found for found in zip(places, before, after, strict=True) if found[1]]:
                ax.annotate(
                    f"{n} → {k}",
                    (float(place), n),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8.5,
                    color=MUTED,
                )
        _title(
            ax,
            f"Fusion after round {last.round}{_setting([run])}",
            f"{last.components_in} → {last.components_out} components, {100 * last.rate:.1f} % merged away"
            + (f"; suppressed classes: {last.suppressed_classes}" if last.suppressed_classes else ""),
        )
        ax.set_xlabel("Class")
        ax.set_ylabel("Components of the class")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        _index_axis(ax, "x", classes)
        fig.legend(loc="outside lower center", ncols=2)
        return fig


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


def _label_ends(
    fig: Figure, ax: Axes, ends: Sequence[tuple[float, float]], values: Sequence[str], runs: Sequence[Run]
) -> None:
    """Write each run's name and value beside the end of its line, or in a legend when there are too many."""
    names = [_short(name) for name in display_names(runs)]
    if len(runs) > len(PALETTE):
        handles = ax.get_lines()[: len(runs)]
        entries = [f"{name}  {value}" for name, value in zip(names, values, strict=True)]
        fig.legend(handles, entries, loc="outside right center", fontsize=8)
        return
    # Only after a layout is the height of the axes known, and with it how far apart two labels have to be.
    texts = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
    notes = [ax.text(1.025, 0.5, text, transform=ax.transAxes, fontsize=9, va="center") for text in texts]
    fig.draw_without_rendering()
    gap = 28 / 72 * fig.dpi / ax.get_window_extent().height
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform(end)) for end in ends]
    heights = spread([y for _, y in wanted], gap, low=0.04, high=0.95)
    for note, (x, y), height, line in zip(notes, wanted, heights, _lines(runs), strict=True):
        note.set(y=height, color=_darker(line["color"]))
        if abs(y - height) > 0.01 or x < 0.97:
            link = {"color": line["color"], "linewidth": 0.8, "alpha": 0.55, "transform": ax.transAxes}
            ax.add_line(Line2D([x, 1.02], [y, height], clip_on=False, **link))


def _percent_curve(run: Run) -> Curve:
    curve = run.curve()
    return (
        np.array([point.round for point in curve]),
        np.array([100 * point.mean for point in curve]),
        np.array([100 * point.std for point in curve]),
    )


def _traffic_curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes and percent at the last round of each visit."""
    rounds, mean, _ = _percent_curve(run)
    sent = {traffic.round: traffic.up + traffic.down for traffic in run.cumulative_bytes()}
    ends = {visit.last_round for visit in run.visits} | {int(rounds[-1])}
    kept = [i for i, number in enumerate(rounds) if int(number) in ends]
    # Round 0, an evaluation before anything was sent, has no traffic.
    return np.array([float(sent.get(int(rounds[i]), 0)) for i in kept]), mean[kept]


def _marks(run: Run, rounds: np.ndarray) -> list[int]:
    """Return where on the curve the exchanges are; nowhere when there are too many to tell apart."""
    marks = [i for i, number in enumerate(rounds) if int(number) in run.exchange_rounds]
    return marks if len(marks) <= 40 else []


def _accuracy_axis(ax: Axes, curves: Sequence[Curve]) -> bool:
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


def _byte_axis(ax: Axes, sent: np.ndarray) -> float:
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


def _index_axis(ax: Axes, which: str, numbers: Sequence[int], *, offset: float = 0.0) -> None:
    """Label positions 0, 1, ... with ``numbers``, leaving labels out where they would touch."""
    axis, limits = (ax.xaxis, ax.set_xlim) if which == "x" else (ax.yaxis, ax.set_ylim)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(numbers) <= 30 * step)
    shown = range(0, len(numbers), step)
    axis.set_ticks([place + offset for place in shown], [str(numbers[place]) for place in shown])
    limits(offset - 0.5, len(numbers) - 0.5 + offset)
    axis.set_tick_params(length=0)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    ax = fig.add_subplot()
    ax.grid(axis="y")
    return fig, ax


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"


def _title(ax: Axes, title: str, subtitle: str) -> None:
    ax.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 8), "textcoords": "offset points"}
    note = ax.annotate(subtitle, (0, 1), **place, fontsize=9, color=MUTED)
    # It may reach over the labels on the right; the layout would rather shrink the axes.
    note.set_in_layout(False)


def _setting(runs: Sequence[Run]) -> str:
    """Return data and partition for the title, where all runs have the same."""
    kinds = {
        (str(r.config.get("dataset", "")), str(r.config.get("partition", "")), len(r.sites)) for r in runs
    }
    if len(kinds) > 1:
        return ""
    dataset, partition, count = kinds.pop()
    return " · " + ", ".join(part for part in (_short(dataset), partition, f"{count} sites") if part)


def _lines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    turns = [divmod(i, len(PALETTE)) for i in range(len(runs))]
    return [
        {"color": PALETTE[place], "linestyle": LINES[turn % len(LINES)], "linewidth": 1.8}
        for turn, place in turns
    ]


def _darker(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return 0.75 * red, 0.75 * green, 0.75 * blue


def _evaluated(runs: Sequence[Run]) -> Sequence[Run]:
    if not runs:
        raise ValueError("expected at least one run to draw, got none")
    for run in runs:
        if not run.final_accuracy().by_site:
            raise ValueError(f"run {run.name} has no accuracy to draw: no site reported one")
    return runs


def _save(fig: Figure, path: str | Path) -> Path:
    target = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}.get(target.suffix)
    if metadata is None:
        raise ValueError(f"expected a figure's path to end in .png or .svg, got {target}")
    with context(["default", STYLE]):
        fig.savefig(target, dpi=150, metadata=metadata)
    return target
