"""Figures of accuracy and communication: what the axes hold; and what a report writes."""

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from gfpl_flwr.report import figures, read_run, write_report

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
        folders.accuracy(r, "train", [0], [100], classifier=[98 - 88 * (r == 1) + r % 2]) for r in range(1, 21)
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
