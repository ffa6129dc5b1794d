"""The figures of an experiment, from the outcomes of its runs alone.

Each figure is a function that builds a matplotlib ``Figure``; :func:`figures_of` writes those of a part, as PNG and
SVG. The same outcomes give the same bytes with the same matplotlib. Colours are Okabe and Ito's.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from gfpl_flwr.experiments.cells import OURS, Cells, Measure, common, own, sent
from gfpl_flwr.experiments.design import Part
from gfpl_flwr.experiments.figure_parts import (
    Dot,
    Label,
    dots_beside_names,
    ends,
    label_right,
    panels,
    percent_limits,
    reaching,
    styles,
)
from gfpl_flwr.experiments.outcomes import Outcome
from gfpl_flwr.report.drawing import (
    GRID,
    INK,
    MARKERS,
    PALETTE,
    STYLE,
    byte_axis,
    canvas,
    line_styles,
    percent_axis,
    save,
    write_titles,
)

Draw = Callable[[Cells], Figure]


def figures_of(part: Part, outcomes: Mapping[str, Outcome], folder: Path) -> Iterator[Path]:
    """Write the figures of a part, and yield their paths.

    Args:
        part: some of its runs are among the outcomes.
        outcomes: of runs, by key.
        folder: where the files go; their names are made of part, page and figure.
    """
    draws: dict[str, dict[str, Draw]] = {
        "methods": {"curves": curves_figure, "tradeoff": tradeoff_figure, "reach": reach_figure},
        "bars": {"spread": spread_figure},
        "variants": {"spread": spread_figure},
        "lines": {"sweep": sweep_figure},
        "features": {"plane": plane_figure},
    }
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if cells.empty:
            continue
        for name, draw in draws.get(part.show, {}).items():
            figure = draw(cells)
            for suffix in (".png", ".svg"):
                yield save(figure, folder / f"{cells.stem(name)}{suffix}")


def curves_figure(cells: Cells) -> Figure:
    """Draw accuracy by round of every method, means over seeds; GFPL with one standard deviation over sites."""
    column = cells.middle
    with context(["default", STYLE]):
        fig, ax = canvas(8.0, 4.8)
        curves, names, ends = [], [], []
        rows = cells.of("rows")
        for row, style in zip(rows, styles(rows, ours=OURS), strict=True):
            line = {key: style[key] for key in ("color", "linestyle", "linewidth")}
            found = cells.finished(rows=row, columns=column)
            if not found:
                continue
            length = min(len(its.curve) for its in found)
            table = np.array([its.curve[:length] for its in found]).mean(0)
            rounds, mean, std = table[:, 0], 100 * table[:, 1], 100 * table[:, 2]
            ours = row == OURS
            ax.plot(rounds, mean, **line, zorder=4 if ours else 3)
            if ours:
                band = np.clip([mean - std, mean + std], 0, 100)
                ax.fill_between(rounds, *band, color=line["color"], alpha=0.13, linewidth=0)
            curves.append((rounds, mean, std if ours else np.zeros_like(mean)))
            names.append(Label(f"{row} {mean[-1]:.1f} %", line))
            ends.append((float(rounds[-1]), float(mean[-1])))
        cut = percent_axis(ax, curves)
        told = f"{column}; means over sites and seeds; band: ± 1 standard deviation over sites of {OURS}"
        write_titles(
            ax,
            f"Accuracy by round · {cells.where}",
            told + ("; first rounds below the axis" if cut else ""),
        )
        ax.set_xlabel("Local round")
        ax.set_ylabel("Accuracy on own classes (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlim(0, 1.01 * max(float(rounds[-1]) for rounds, _, _ in curves))
        label_right(fig, ax, ends, names)
        return fig


def tradeoff_figure(cells: Cells) -> Figure:
    """Draw final accuracy against all that was sent, a point for each method, with 95 % intervals over seeds."""
    with context(["default", STYLE]):
        fig, ax = canvas(8.0, 4.8)
        points, names = _scatter(ax, cells, sent, own, bars_across=False)
        byte_axis(ax, np.array([x for x, _ in points]))
        found = [cells.interval(own, rows=row, columns=cells.middle) for row in cells.of("rows")]
        ax.set_ylim(percent_limits([end for its in found if its.count for end in ends(its)]))
        write_titles(
            ax,
            f"Accuracy against data sent · {cells.where}",
            f"{cells.middle}; whole run, all sites, both ways; bars: 95 % interval over seeds",
        )
        ax.set_xlabel("Data sent in the whole run (log scale)")
        ax.set_ylabel("Accuracy on own classes (%)")
        label_right(fig, ax, points, names)
        return fig


def reach_figure(cells: Cells) -> Figure:
    """Draw accuracy on classes that a site never saw against accuracy on its own, a point for each method."""
    with context(["default", STYLE]):
        fig, ax = canvas(8.0, 4.8)
        ax.grid(axis="x")
        points, names = _scatter(ax, cells, own, common("unseen"), bars_across=True)
        ax.set_ylim(-3, 103)
        write_titles(
            ax,
            f"Classes a site never saw · {cells.where}",
            f"{cells.middle}; at the end of the run; bars: 95 % interval over seeds",
        )
        ax.set_xlabel("Accuracy on own classes (%)")
        ax.set_ylabel("Accuracy on classes never seen (%)")
        label_right(fig, ax, points, names)
        return fig


def _scatter(
    ax: Axes, cells: Cells, across: Measure, up: Measure, *, bars_across: bool
) -> tuple[list[tuple[float, float]], list[Label]]:
    """Draw a point for every method that has both measures; return the points and their labels, in percent of y.

    Args:
        ax: where.
        cells: of a page.
        across, up: measures on the axes.
        bars_across: whether intervals over seeds are drawn along both axes, not only upwards.
    """
    points, names = [], []
    rows = cells.of("rows")
    for row, style in zip(rows, styles(rows, ours=OURS), strict=True):
        point = style | {"linestyle": "none", "markeredgecolor": "white"}
        x, y = (cells.interval(measure, rows=row, columns=cells.middle) for measure in (across, up))
        if not (x.count and y.count):
            continue
        across_bar = reaching(x) if bars_across else None
        ax.errorbar(x.mean, y.mean, xerr=across_bar, yerr=reaching(y), **point, capsize=3, zorder=4)
        points.append((x.mean, y.mean))
        names.append(Label(f"{row} {y.mean:.1f} %", point))
    return points, names


def spread_figure(cells: Cells) -> Figure:
    """Draw the accuracy of every row as a dot with its 95 % interval over seeds, a panel for each column."""
    columns, rows = cells.of("columns"), cells.of("rows")
    with context(["default", STYLE]):
        fig, axes = panels(len(columns), height=1.4 + 0.3 * len(rows))
        colours = [line["color"] for line in line_styles(len(rows))]
        for ax, column in zip(axes, columns, strict=True):
            dots = [
                Dot(
                    row,
                    cells.interval(own, rows=row, columns=column),
                    list(cells.values(own, rows=row, columns=column).values()),
                )
                for row in rows
            ]
            dots_beside_names(ax, dots, colours, named=ax is axes[0])
            if drawn := [end for dot in dots if dot.value.count for end in (*ends(dot.value), *dot.each)]:
                ax.set_xlim(percent_limits(drawn))
            ax.set_title(column, loc="left", fontsize=10)
            ax.set_xlabel("Accuracy on own classes (%)")
        where = "".join(f" · {value}" for value in cells.page.values())
        fig.suptitle(
            f"{cells.part.title}{where}\nlarge: mean over seeds and 95 % interval; small: each seed",
            fontsize=10, x=0.01, ha="left",
        )  # fmt: skip
        return fig


def sweep_figure(cells: Cells) -> Figure:
    """Draw accuracy and data sent along an axis, a panel of both for each line."""
    lines, steps = [line for line in cells.of("lines") if cells.finished(lines=line)], cells.of("x")
    with context(["default", STYLE]):
        fig, axes = panels(2, rows=len(lines), height=0.7 + 2.3 * len(lines))
        places = np.arange(len(steps))
        counts: set[int] = set()
        for place, line in enumerate(lines):
            left, right = axes[2 * place], axes[2 * place + 1]
            colour = line_styles(len(lines))[place]["color"]
            values = list(cells.along(own, line).values())
            sizes = list(cells.along(sent, line).values())
            known = [i for i, value in enumerate(values) if value.count]
            counts |= {values[i].count for i in known}
            halves = np.hstack([reaching(values[i]) for i in known])
            left.errorbar(
                places[known], [values[i].mean for i in known], yerr=halves, color=colour, marker="o", capsize=3
            )
            left.set_ylim(percent_limits([end for i in known for end in ends(values[i])]))
            right.plot(places[known], [sizes[i].mean / 1e6 for i in known], color=colour, marker="o")
            right.set_ylim(0, 1.15 * max([sizes[i].mean / 1e6 for i in known], default=1.0) or 1.0)
            left.set_ylabel(f"{line}\naccuracy (%)")
            right.set_ylabel("whole run (MB)")
            for ax in (left, right):
                ax.set_xticks(places, steps)
                ax.set_xlim(-0.5, len(steps) - 0.5)
        for ax in axes[-2:]:
            ax.set_xlabel(cells.part.roles["x"])
        spread = "one seed" if counts == {1} else "bars: 95 % interval over seeds"
        alone = "; no bar: one seed" if len(counts) > 1 and 1 in counts else ""
        axes[0].set_title(f"Accuracy on own classes\n{spread}{alone}", loc="left", fontsize=9)
        axes[1].set_title("Data sent, all sites, both ways", loc="left", fontsize=9)
        fig.suptitle(cells.part.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        return fig


def plane_figure(cells: Cells) -> Figure:
    """Draw projected features on the plane of three vertices: a site's own, those of prototypes, another site's."""
    scene = next(
        its.scene for its in map(cells.outcomes.get, (its.key for its in cells.on_page())) if its and its.scene
    )
    holds, lacks = scene["holds"], scene["lacks"]
    names = ", ".join(map(str, lacks["classes"]))
    shown = (
        (holds["points"], holds["labels"], f"Test images at site {holds['site']},\nwhich holds the three classes"),
        (
            scene["prototypes"]["points"],
            scene["prototypes"]["labels"],
            f"Pseudo-features of the fused prototypes\nat site {holds['site']}; crosses: component means",
        ),
        (lacks["points"], lacks["labels"], f"The same images at site {lacks['site']},\nwhich holds {names}"),
    )
    with context(["default", STYLE]):
        fig, axes = panels(3, height=4.2)
        for ax, (points, labels, title) in zip(axes, shown, strict=True):
            corners = np.array(scene["vertices"])
            ax.plot(*np.vstack([corners, corners[:1]]).T, color=GRID, linewidth=1.2, zorder=1)
            for place, label in enumerate(scene["classes"]):
                own = np.array([point for point, its in zip(points, labels, strict=True) if its == label])
                look: dict[str, Any] = {"color": PALETTE[place], "marker": MARKERS[place], "linestyle": "none"}
                if len(own):
                    ax.plot(*own.T, **look, markersize=4, alpha=0.55, markeredgewidth=0, zorder=3)
                ax.plot(*corners[place], **look, markersize=13, markerfacecolor="none", markeredgewidth=2, zorder=2)
                outwards = (0, 12) if corners[place][1] > 0 else (0, -19)
                ax.annotate(
                    f"class {label}", corners[place], outwards, textcoords="offset points", ha="center", fontsize=8
                )
            if ax is axes[1]:
                means = np.array(scene["means"]["points"])
                ax.plot(
                    *means.T, color=INK, marker="x", linestyle="none", markersize=7, markeredgewidth=1.8, zorder=4
                )
            ax.set_title(title, loc="left", fontsize=9)
            ax.set_aspect("equal")
            ax.set_xlim(-1.25, 1.25)
            ax.set_ylim(-0.95, 1.35)
            ax.grid(visible=False)
            ax.set_xticks([])
            ax.set_yticks([])
        fig.suptitle(
            "Projected features on the plane through three vertices of the ETF (open marks)",
            fontsize=12, fontweight="bold", x=0.01, ha="left",
        )  # fmt: skip
        return fig
