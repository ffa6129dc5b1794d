"""Figures of the sites: their accuracies, the data they hold, and what fusion made of their prototypes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from gfpl_flwr.report.drawing import (
    MARKERS,
    MUTED,
    PALETTE,
    STYLE,
    canvas,
    category_axis,
    evaluated,
    label_ends,
    line_styles,
    percent_axis,
    save,
    setting,
    write_titles,
)
from gfpl_flwr.report.runs import Run, display_names
from gfpl_flwr.site_names import SiteName, site_order

DOTS_UP_TO = 600  # cells of the label figure beyond which dots give way to a heat map


def sites(runs: Sequence[Run], path: str | Path) -> Path:
    """Write :func:`sites_figure` and return the path."""
    return save(sites_figure(runs), path)


def labels(run: Run, path: str | Path) -> Path:
    """Write :func:`labels_figure` and return the path."""
    return save(labels_figure(run), path)


def merge(run: Run, path: str | Path) -> Path:
    """Write :func:`merge_figure` and return the path."""
    return save(merge_figure(run), path)


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
        finals = [run.final_accuracy() for run in evaluated(runs)]
        named = sorted({site for final in finals for site in final.by_site}, key=site_order)
        fig, ax = canvas(min(14.0, max(8.0, 2.5 + 0.25 * len(named))), 4.0)
        dots: dict[str, Any] = {"markersize": 6, "linestyle": "none"}
        shapes = [MARKERS[i // len(PALETTE) % len(MARKERS)] for i in range(len(runs))]
        # Side by side within the column of a site, so that equal values do not hide one another.
        shifts = 0.18 * (np.arange(len(runs)) - (len(runs) - 1) / 2) * min(1.0, 4 / len(runs))
        places = [
            np.array([named.index(site) for site in f.by_site]) + x for f, x in zip(finals, shifts, strict=True)
        ]
        values = [100 * np.array(list(final.by_site.values())) for final in finals]
        for x, y, line, shape in zip(places, values, line_styles(len(runs)), shapes, strict=True):
            ax.plot(x, y, **dots, color=line["color"], marker=shape, zorder=3)
        for run, final, x, y, line, shape in zip(
            runs, finals, places, values, line_styles(len(runs)), shapes, strict=True
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
        percent_axis(ax, [(np.ones(everything.size), everything, np.zeros(everything.size))])
        subtitle = "Last known accuracy; dotted: mean over sites"
        subtitle += "; hollow: the last reply failed" if any(run.stale_sites for run in runs) else ""
        write_titles(ax, f"Accuracy of each site{setting(runs)}", subtitle)
        ax.set_xlabel("Site")
        ax.set_ylabel("Accuracy on own test data (%)")
        _site_axis(fig, ax, named)
        ends = [(len(named) - 0.5, float(100 * final.mean)) for final in finals]
        texts = [f"{100 * final.mean:.1f} ± {100 * final.std:.1f} %" for final in finals]
        label_ends(fig, ax, ends, texts, display_names(runs))
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
    classes, named = range(1 + max(label for counts in held.values() for label in counts)), list(held)
    table = np.array([[held[site].get(label, 0) for site in named] for label in classes])
    with context(["default", STYLE]):
        fig, ax = canvas(8.0, min(7.0, max(3.0, 1.4 + 0.24 * len(classes))))
        if table.size <= DOTS_UP_TO:
            rows, columns = np.nonzero(table)
            unit = 150 / max(1, table.max())
            ax.scatter(columns, rows, s=table[rows, columns] * unit, color=PALETTE[0], alpha=0.85, linewidths=0)
            for count in sorted({int(table.max()), max(1, int(table.max()) // 4)}, reverse=True):
                ax.scatter([], [], s=count * unit, color=PALETTE[0], alpha=0.85, linewidths=0, label=str(count))
            fig.legend(loc="outside right center", title="samples", labelspacing=1.0)
            ax.grid(axis="x")
        else:
            shades = LinearSegmentedColormap.from_list("counts", ["#dbe9f4", PALETTE[0], "#00263d"])
            mesh = ax.pcolormesh(np.ma.masked_equal(table, 0), cmap=shades, vmin=0, rasterized=True)
            fig.colorbar(mesh, ax=ax, label="samples", pad=0.01, aspect=40)
            ax.grid(visible=False)
        write_titles(
            ax,
            f"Training data by site{setting([run])}",
            f"{table.sum():,} samples; {(table > 0).sum(axis=0).mean():.1f} classes a site on average",
        )
        ax.set_xlabel("Site")
        ax.set_ylabel("Class")
        offset = 0.0 if table.size <= DOTS_UP_TO else 0.5
        _site_axis(fig, ax, named, offset=offset)
        category_axis(ax, "y", classes, offset=offset)
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
        fig, ax = canvas(min(14.0, max(8.0, 1.5 + 0.12 * len(classes))), 3.8)
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
        write_titles(
            ax,
            f"Fusion after round {last.round}{setting([run])}",
            f"{last.components_in} → {last.components_out} components, {100 * last.rate:.1f} % merged away"
            + (f"; suppressed classes: {last.suppressed_classes}" if last.suppressed_classes else ""),
        )
        ax.set_xlabel("Class")
        ax.set_ylabel("Components of the class")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        category_axis(ax, "x", classes)
        fig.legend(loc="outside lower center", ncols=2)
        return fig


def _site_axis(fig: Figure, ax: Axes, sites: Sequence[SiteName], *, offset: float = 0.0) -> None:
    """Put the sites on the x axis, names that would touch each other on a slant."""
    category_axis(ax, "x", sites, offset=offset)
    labels = ax.get_xticklabels()
    # Inches at 10 points: a letter is about 0.085 wide; what stands beside the axes takes at most 2.4.
    longest = 0.085 * max((len(label.get_text()) for label in labels), default=0)
    room = (fig.get_figwidth() - 2.4) / max(1, len(labels))
    if longest + 0.1 > room:
        # Long names on a slant would push the axes to the right.
        steep = room < 0.35 or longest > 1.1
        ax.tick_params(axis="x", labelrotation=90 if steep else 40)
        for label in labels:
            label.set(ha="center" if steep else "right", rotation_mode="default" if steep else "anchor")
        # The names take their room from a taller figure, not from the axes.
        fig.set_figheight(fig.get_figheight() + (1.0 if steep else 0.64) * longest)
