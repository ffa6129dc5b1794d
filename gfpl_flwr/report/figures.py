"""Figures of finished or interrupted runs, as PNG or SVG by the suffix of the path.

Each figure is a pair: ``<name>_figure`` builds a matplotlib ``Figure`` (no pyplot, no window, no style of the
user's) and ``<name>`` writes it. The same runs give the same bytes with the same matplotlib: no date and no
random identifier is written. Colours are Okabe and Ito's, which people who confuse colours can tell apart.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from gfpl_flwr.report.drawing import (
    STYLE,
    Curve,
    byte_axis,
    canvas,
    evaluated,
    label_ends,
    line_styles,
    percent_axis,
    save,
    setting,
    write_titles,
)
from gfpl_flwr.report.formatting import human_bytes
from gfpl_flwr.report.runs import Run, display_names


def accuracy(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`accuracy_figure` and return the path."""
    return save(accuracy_figure(runs), path)


def communication(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`communication_figure` and return the path."""
    return save(communication_figure(runs), path)


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
        curves = [_percent_curve(run) for run in evaluated(runs)]
        fig, ax = canvas(8.0, 4.5)
        shade = 0.13 if len(runs) <= 4 else 0.05
        marked = any(_marks(run, rounds) for run, (rounds, _, _) in zip(runs, curves, strict=True))
        for run, (rounds, mean, std), line in zip(runs, curves, line_styles(len(runs)), strict=True):
            points = [0] if len(rounds) == 1 else _marks(run, rounds)
            ax.plot(rounds, mean, **line, marker="o", markersize=4, markerfacecolor="white", markevery=points)
            band = np.clip([mean - std, mean + std], 0, 100)
            ax.fill_between(rounds, *band, color=line["color"], alpha=shade, linewidth=0)
        cut = percent_axis(ax, curves)
        subtitle = "Mean ± 1 standard deviation over sites"
        subtitle += "; circles: rounds of an exchange" if marked else ""
        subtitle += "; first rounds below the axis" if cut else ""
        over = any(((mean - std < 0) | (mean + std > 100)).any() for _, mean, std in curves)
        subtitle += "; bands cut at 0 and 100 %" if over else ""
        write_titles(ax, f"Accuracy by round{setting(runs)}", subtitle)
        ax.set_xlabel("Local round")
        ax.set_ylabel("Accuracy on each site's own test data (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        last = max(float(rounds[-1]) for rounds, _, _ in curves)
        ax.set_xlim(*((0, 1.01 * last) if last > 1 else (0, 1.5)))
        ends = [(float(rounds[-1]), float(mean[-1])) for rounds, mean, _ in curves]
        label_ends(fig, ax, ends, [f"{y:.1f} %" for _, y in ends], display_names(runs))
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
        curves = [_traffic_curve(run) for run in evaluated(runs)]
        fig, ax = canvas(8.0, 4.5)
        right = byte_axis(ax, np.concatenate([sent for sent, _ in curves]))
        for (sent, mean), line in zip(curves, line_styles(len(runs)), strict=True):
            ax.plot(sent, mean, **line, marker="o", markersize=4 if len(sent) <= 40 else 0)
        for (sent, mean), line in zip(curves, line_styles(len(runs)), strict=True):
            ax.plot(
                sent[-1:],
                mean[-1:],
                color=line["color"],
                marker="o",
                markersize=9,
                markeredgecolor="white",
                clip_on=False,
            )
            ax.plot([sent[-1], right], [mean[-1], mean[-1]], color=line["color"], linewidth=1, linestyle=":")
        cut = percent_axis(ax, [(np.arange(len(mean)), mean, np.zeros(len(mean))) for _, mean in curves])
        subtitle = "Mean over sites after each visit; sent by and to all sites; large point: end of the run"
        subtitle += "; first points below the axis" if cut else ""
        write_titles(ax, f"Accuracy against data sent{setting(runs)}", subtitle)
        ax.set_xlabel("Data sent since the start of the run (log scale)")
        ax.set_ylabel("Accuracy on each site's own test data (%)")
        ends = [(right, float(mean[-1])) for _, mean in curves]
        values = [f"{mean[-1]:.1f} %, {human_bytes(float(sent[-1]))}" for sent, mean in curves]
        label_ends(fig, ax, ends, values, display_names(runs))
        return fig


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
