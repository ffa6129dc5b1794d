"""Figures: what the axes hold, whether labels can be read, and that the same run gives the same bytes."""

import math
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.isotonic import IsotonicRegression

from gfpl_flwr.report import drawing, figures, read_run, site_figures, write_report

PNG = b"\x89PNG\r\n\x1a\n"


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_accuracy_lines_and_bands_hold_the_curves_in_percent(folders: Any) -> None:
    figure = figures.accuracy_figure([read_run(folders.small()), read_run(folders.local())])
    (ax,) = figure.axes
    small, local = ax.get_lines()[:2]
    np.testing.assert_allclose(small.get_xydata(), [[1, 65], [2, 75], [3, 80]])
    np.testing.assert_allclose(local.get_xydata(), [[1, 50], [2, 75]])
    # The band of "small": 65 ± 15, 75 ± 5, 80 ± 10.
    corners = {(x, round(y, 6)) for x, y in ax.collections[0].get_paths()[0].vertices}
    assert corners == {(1, 50), (1, 80), (2, 70), (2, 80), (3, 70), (3, 90)}
    # Exchanges after rounds 2 and 3 are the second and third point; Local has none.
    assert list(small.get_markevery()) == [1, 2]
    assert list(local.get_markevery()) == []
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Local round", "Accuracy on each site's own test data (%)")
    written = texts(figure)
    assert "small\n80.0 %" in written
    assert "local\n75.0 %" in written


def test_accuracy_axis_shows_everything_or_says_what_it_cuts(folders: Any) -> None:
    whole = figures.accuracy_figure([read_run(folders.small())])
    assert whole.axes[0].get_ylim()[0] <= 50
    assert "below the axis" not in texts(whole)
    # 20 rounds of which the first has 10 % and the others 98 %: the axis would be empty for nine tenths.
    entries = [
        folders.accuracy(r, "train", [0], [100], classifier=[98 - 88 * (r == 1) + r % 2])
        for r in range(1, 21)
    ]
    steep = figures.accuracy_figure(
        [read_run(folders.write("steep", [folders.visit(1, 1, 20, [folders.reply(0, *entries)])]))]
    )
    low, high = steep.axes[0].get_ylim()
    assert 80 < low < 98
    assert 99 < high < 101
    assert "first rounds below the axis" in texts(steep)


def test_communication_sets_accuracy_against_all_bytes(folders: Any) -> None:
    figure = figures.communication_figure([read_run(folders.small()), read_run(folders.local())])
    (ax,) = figure.axes
    small, local = ax.get_lines()[:2]
    # After round 2: 300 up + 230 down; after round 3: 620 + 330. Round 1 ends no visit. Local: 20 + 10.
    np.testing.assert_allclose(small.get_xydata(), [[530, 75], [950, 80]])
    np.testing.assert_allclose(local.get_xydata(), [[30, 75]])
    assert ax.get_xscale() == "log"
    left, right = ax.get_xlim()
    assert 0 < left < 30
    assert right > 950
    assert "small\n80.0 %, 950 B" in texts(figure)
    assert "local\n75.0 %, 30 B" in texts(figure)
    figure.draw_without_rendering()
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert {"50 B", "100 B", "1 kB"} <= set(ticks)


def test_run_that_sent_nothing_is_on_the_axis(folders: Any) -> None:
    entry = folders.accuracy(1, "train", [0], [4], classifier=[3])
    silent = folders.visit(1, 1, 1, [folders.reply(0, entry)], bytes_up=0, bytes_down=0)
    runs = [read_run(folders.write("silent", [silent])), read_run(folders.small())]
    for drawn in (runs, runs[:1]):
        figure = figures.communication_figure(drawn)
        (ax,) = figure.axes
        assert ax.get_xscale() == "symlog"
        np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[0, 75]])
        assert ax.get_xlim()[0] < 0
        figure.draw_without_rendering()
        assert "0 B" in [tick.get_text() for tick in ax.get_xticklabels()]


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
    found = {
        tuple(place): size
        for place, size in zip(np.asarray(dots.get_offsets()), dots.get_sizes(), strict=True)
    }
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


@pytest.mark.parametrize("count", [2, 7, 9])
@pytest.mark.parametrize(
    "draw", [figures.accuracy_figure, figures.communication_figure, site_figures.sites_figure]
)
def test_labels_do_not_overlap_and_stay_inside(folders: Any, draw: Any, count: int) -> None:
    """The worst case: all runs end at the same accuracy; one has a name of 60 letters."""
    names = [f"run-{i}" for i in range(count - 1)] + ["a-very-long-name-" + "x" * 43]
    figure = draw([read_run(folders.small(name)) for name in names])
    figure.draw_without_rendering()
    owner: Any = figure.legends[0] if count > len(drawing.PALETTE) else figure.axes[0]
    notes = [text for text in owner.findobj(matplotlib.text.Text) if " %" in text.get_text()]
    boxes = [note.get_window_extent() for note in notes]
    assert len(boxes) == count
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        if count <= len(drawing.PALETTE):
            assert box.x0 > figure.axes[0].get_window_extent().x1


def test_band_ends_at_0_and_100_percent_and_says_so(folders: Any) -> None:
    # Sites at 0.25, 1, 1, 1: mean 81.25, std sqrt(3) / 4 * 75 = 32.48 percent, so mean + std is 113.73.
    def entry(hits: int) -> dict[str, Any]:
        return folders.accuracy(1, "train", [0], [4], classifier=[hits])

    sites = [folders.reply(site, entry(hits)) for site, hits in enumerate((1, 4, 4, 4))]
    run = read_run(folders.write("uneven", [folders.visit(1, 1, 1, sites)]))
    figure = figures.accuracy_figure([run])
    heights = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == 100
    assert heights.min() == pytest.approx(81.25 - 75 * 3**0.5 / 4)
    assert "bands cut at 0 and 100 %" in texts(figure)
    assert "bands cut" not in texts(figures.accuracy_figure([read_run(folders.small())]))


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


def test_long_titles_end_before_the_right_edge(folders: Any) -> None:
    setting = {"dataset": "folder:/" + "photos/" * 9, "partition": "a-partition-with-quite-a-long-name"}
    run = read_run(folders.small(**setting))
    for figure in (
        figures.accuracy_figure([run]),
        figures.communication_figure([run]),
        site_figures.sites_figure([run]),
        site_figures.labels_figure(run),
        site_figures.merge_figure(run),
    ):
        figure.draw_without_rendering()
        (title,) = [t for t in figure.findobj(matplotlib.text.Text) if "quite" in t.get_text()]
        box = title.get_window_extent()
        assert title.get_text().count("\n") == 1
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    gap=st.floats(0.001, 0.2),
)
def test_spread_is_bounded_isotonic_regression(values: list[float], gap: float) -> None:
    low, high = -0.5, 1.5  # eight values with a gap of 0.2 fit in
    moved = drawing.spread(values, gap, low=low, high=high)
    order = np.argsort(values, kind="stable")
    ranks = np.arange(len(values))
    oracle = IsotonicRegression(y_min=low, y_max=high - (len(values) - 1) * gap).fit_transform(
        ranks, np.asarray(values)[order] - ranks * gap
    )
    np.testing.assert_allclose(np.asarray(moved)[order], oracle + ranks * gap, atol=1e-9)
    assert (np.diff(np.sort(moved)) >= gap - 1e-9).all()
    assert min(moved) >= low
    assert max(moved) <= high + 1e-9


def test_spread_moves_two_equal_values_by_half_the_gap_each() -> None:
    assert drawing.spread([0.5, 0.5], 0.2, low=0.0, high=1.0) == pytest.approx([0.4, 0.6])
    assert drawing.spread([0.9, 0.1], 0.2, low=0.0, high=1.0) == pytest.approx([0.9, 0.1])
    # Pushed back from the upper bound.
    assert drawing.spread([1.0, 1.0], 0.2, low=0.0, high=1.0) == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", ["accuracy", "communication", "sites", "labels", "merge"])
def test_files_are_written_and_the_same_each_time(
    folders: Any, tmp_path: Path, name: str, suffix: str
) -> None:
    run = read_run(folders.small("a $ b"))
    write: Any = getattr(figures, name, None) or getattr(site_figures, name)
    what = run if name in ("labels", "merge") else [run]
    first = write(what, tmp_path / f"first{suffix}")
    # What the user prefers elsewhere does not show here.
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "lines.linewidth": 9}):
        second = write(what, str(tmp_path / f"second{suffix}"))
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert len(content) > 5000
    if suffix == ".png":
        assert content.startswith(PNG)
        assert b"Software" not in content
    else:
        assert b"<svg" in content
        assert b"dc:date" not in content


def test_other_suffixes_are_refused(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path to end in \.png or \.svg, got .*figure\.jpg"):
        figures.accuracy([read_run(folders.small())], tmp_path / "figure.jpg")


def test_nothing_to_draw_is_an_error_that_says_so(folders: Any) -> None:
    early = read_run(folders.write("early", [], finished=False))
    for draw in (figures.accuracy_figure, figures.communication_figure, site_figures.sites_figure):
        with pytest.raises(ValueError, match="expected at least one run"):
            draw([])
        with pytest.raises(ValueError, match="run early has no accuracy to draw"):
            draw([early])
    with pytest.raises(ValueError, match="run early has no labels to draw"):
        site_figures.labels_figure(early)
    with pytest.raises(ValueError, match="run early has no fusion to draw"):
        site_figures.merge_figure(early)


def test_write_report_writes_what_the_run_has(folders: Any) -> None:
    small, local = folders.small(finished=False), folders.local()
    early = folders.write("early", [], finished=False)
    names = ["accuracy.png", "communication.png", "sites.png", "labels.png", "merge.png"]
    assert write_report(small, others=[local, early]) == [small / name for name in names]
    assert all((small / name).read_bytes().startswith(PNG) for name in names)
    assert write_report(str(local)) == [local / name for name in names[:3]]
    assert write_report(early) == []
    assert not list(early.glob("*.png"))


def test_report_needs_neither_pyplot_nor_torch_nor_flower() -> None:
    code = (
        "import sys, gfpl_flwr.report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import gfpl_flwr.report.figures, gfpl_flwr.report.site_figures\n"
        "found = {'torch', 'flwr', 'matplotlib.pyplot'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
