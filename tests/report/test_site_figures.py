"""Figures of the sites: what the axes hold, and whether the names of many devices can be read."""

import math
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from gfpl_flwr.report import read_run, site_figures


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_sites_has_a_dot_per_site_and_hollow_where_stale(folders: Any) -> None:
    figure = site_figures.sites_figure([read_run(folders.small()), read_run(folders.local())])
    (ax,) = figure.axes
    small, local, *rest = ax.get_lines()
    np.testing.assert_allclose(small.get_ydata(), [90, 70])
    np.testing.assert_allclose(local.get_ydata(), [75, 75])
    # Two runs stand side by side in the column of their site.
    np.testing.assert_array_equal(np.round(small.get_xdata()), [0, 1])
    np.testing.assert_array_equal(np.round(local.get_xdata()), [0, 1])
    assert (np.asarray(local.get_xdata()) > np.asarray(small.get_xdata())).all()
    hollow = [line for line in rest if line.get_marker() == "o" and len(line.get_xdata())]
    np.testing.assert_allclose([line.get_ydata()[0] for line in hollow], [70])
    assert "80.0 ± 10.0 %" in texts(figure)
    assert "hollow: the last reply failed" in texts(figure)


def test_labels_dots_have_areas_in_proportion_to_counts(folders: Any) -> None:
    figure = site_figures.labels_figure(read_run(folders.small()))
    (ax,) = figure.axes
    dots = ax.collections[0]
    # (site, class): count, as "small" has them.
    counts = {(0, 0): 30, (2, 0): 5, (0, 1): 10, (1, 1): 40}
    found = {tuple(place): size for place, size in zip(np.asarray(dots.get_offsets()), dots.get_sizes(), strict=True)}
    assert found.keys() == counts.keys()
    for place, count in counts.items():
        assert found[place] / found[(1, 1)] == pytest.approx(count / 40)
    assert "85 samples; 1.3 classes a site on average" in texts(figure)


def test_labels_of_many_cells_are_shades(folders: Any) -> None:
    sites = [folders.reply(s, labels={s: 7, (s + 50) % 100: 3}) for s in range(30)]
    figure = site_figures.labels_figure(read_run(folders.write("many", [folders.visit(1, 1, 1, sites)])))
    shades = figure.axes[0].collections[0].get_array()
    assert shades.shape == (80, 30)
    assert (shades[4, 4], shades[54, 4], shades.count()) == (7, 3, 60)


def test_merge_bars_are_components_in_and_out_of_the_last_fusion(folders: Any) -> None:
    figure = site_figures.merge_figure(read_run(folders.small()))
    (ax,) = figure.axes
    before, after = ([bar.get_height() for bar in bars] for bars in ax.containers)
    # Classes 1 and 2 had no prototypes in the second exchange; their place stays empty.
    assert before == [5, 0, 0, 3]
    assert after == [4, 0, 0, 2]
    assert "8 → 6 components, 25.0 % merged away" in texts(figure)
    assert "5 → 4" in texts(figure)
    assert "0 → 0" not in texts(figure)


@pytest.mark.parametrize("prefix", ["camera", "a-long-name-for-a-camera"])
@pytest.mark.parametrize("count", [2, 12, 40])
def test_names_of_sites_do_not_touch_and_stay_inside(folders: Any, prefix: str, count: int) -> None:
    entry = folders.accuracy(1, "train", [0], [4], classifier=[3])
    sites = [folders.reply(f"{prefix}-{i}", entry, labels={0: 3}) for i in range(count)]
    run = read_run(folders.write("devices", [folders.visit(1, 1, 1, [*sites, folders.reply(3, entry)])]))
    for figure in (site_figures.sites_figure([run]), site_figures.labels_figure(run)):
        figure.draw_without_rendering()
        labels = figure.axes[0].get_xticklabels()
        assert prefix[:8] in labels[-1].get_text()
        angle = labels[0].get_rotation()
        assert len({label.get_rotation() for label in labels}) == 1
        for label in labels:
            box = label.get_window_extent()
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
        # Distance between neighbouring lines of text, across their direction.
        ends = [label.get_window_extent() for label in labels]
        if angle == 0:
            assert all(one.x1 < other.x0 for one, other in pairwise(ends))
        else:
            across = np.diff([box.x1 for box in ends]).min() * math.sin(math.radians(angle))
            assert across >= 10 / 72 * figure.dpi
        if count == 2 and prefix == "camera":
            assert angle == 0


def test_sites_axis_has_numbers_first_then_names(folders: Any) -> None:
    figure = site_figures.sites_figure([read_run(folders.named())])
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["7", "camera-2", "camera-10", "gate"]
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[0, 25], [1, 50], [2, 75], [3, 100]])
