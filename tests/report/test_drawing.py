"""What all figures share: labels and titles that can be read, and the same bytes for the same run."""

from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from gfpl_flwr.report import drawing, figures, read_run, site_figures

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("count", [2, 7, 9])
@pytest.mark.parametrize("draw", [figures.accuracy_figure, figures.communication_figure, site_figures.sites_figure])
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
def test_files_are_written_and_the_same_each_time(folders: Any, tmp_path: Path, name: str, suffix: str) -> None:
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
