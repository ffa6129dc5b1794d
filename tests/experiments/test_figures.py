"""Figures show the outcomes, and the same outcomes give the same bytes."""

from dataclasses import replace

import numpy as np
import pytest

from gfpl_flwr.experiments.cells import Cells, own
from gfpl_flwr.experiments.figures import (
    curves_figure,
    figures_of,
    plane_figure,
    reach_figure,
    spread_figure,
    sweep_figure,
    tradeoff_figure,
)


@pytest.fixture
def methods(two_methods, outcomes) -> Cells:
    return Cells(two_methods.parts[0], {"dataset": "Digits"}, outcomes)


def texts(figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(lambda it: hasattr(it, "get_text")))


def test_the_curves_are_means_over_seeds_in_percent(methods):
    figure = curves_figure(methods)
    local, ours, *_ = figure.axes[0].get_lines()
    # n = 3, three seeds: 0.81, 0.82, 0.83 and 0.83, 0.84, 0.88, thirty points lower in the first round
    assert local.get_xdata() == pytest.approx([1, 2])
    assert local.get_ydata() == pytest.approx([52, 82])
    assert ours.get_ydata() == pytest.approx([55, 85])
    assert ours.get_linewidth() > local.get_linewidth()
    assert "Local 82.0 %" in texts(figure)
    assert "GFPL 85.0 %" in texts(figure)


def test_the_tradeoff_has_a_point_for_each_method(methods):
    figure = tradeoff_figure(methods)
    assert "GFPL 85.0 %" in texts(figure)
    points = [line.get_xydata()[0] for line in figure.axes[0].get_lines() if len(line.get_xydata()) == 1]
    assert any(np.allclose(point, (3e6, 85.0)) for point in points)


def test_the_reach_is_own_against_unseen_classes(methods):
    figure = reach_figure(methods)
    points = [line.get_xydata()[0] for line in figure.axes[0].get_lines() if len(line.get_xydata()) == 1]
    assert any(np.allclose(point, (85.0, 10.0)) for point in points)


def test_a_sweep_has_accuracy_and_data_along_its_axis(two_methods, outcomes):
    figure = sweep_figure(Cells(two_methods.parts[1], {}, outcomes))
    left, right = figure.axes
    assert left.get_lines()[0].get_ydata() == pytest.approx([85.0, 85.0])
    assert right.get_lines()[0].get_ydata() == pytest.approx([3.0, 3.0])
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "5"]


def test_a_spread_shows_every_seed(two_methods, outcomes):
    cells = Cells(two_methods.parts[0], {"dataset": "Digits"}, outcomes)
    figure = spread_figure(cells)
    assert len(figure.axes) == 2
    seeds = [line for line in figure.axes[1].get_lines() if len(line.get_xydata()) == 3]
    assert sorted(seeds[0].get_xdata()) == pytest.approx([81, 82, 83])
    assert "Local" in texts(figure)


def test_error_bars_end_at_0_and_100_percent(methods):
    for key, its in list(methods.outcomes.items()):
        values = {"classifier": (0.995 if its.options["seed"] == 1 else 0.9, 0.0)}
        methods.outcomes[key] = type(its)(**{**its.__dict__, "accuracy": values})
    figure = tradeoff_figure(methods)
    segments = [part for bars in figure.axes[0].collections for part in bars.get_segments()]
    assert max(part[:, 1].max() for part in segments) == pytest.approx(100.0)


def test_the_plane_has_the_vertices_and_three_sets_of_points(two_methods, outcomes):
    corners = [[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]]
    set_of = {"points": [[0.0, 0.9], [0.8, -0.4], [-0.8, -0.4]], "labels": [4, 5, 7]}
    scene = {
        "classes": [4, 5, 7],
        "vertices": corners,
        "holds": set_of | {"site": 3, "classes": [4, 5, 7]},
        "lacks": set_of | {"site": 8, "classes": [0, 1]},
        "prototypes": set_of,
        "means": set_of,
    }
    cells = Cells(two_methods.parts[1], {}, outcomes)
    for key, its in list(outcomes.items()):
        outcomes[key] = type(its)(**{**its.__dict__, "scene": scene})
    figure = plane_figure(cells)
    assert len(figure.axes) == 3
    assert "site 8" in texts(figure)
    assert "class 7" in texts(figure)


def test_the_files_of_a_part_are_png_and_svg_and_the_same_each_time(two_methods, outcomes, tmp_path):
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written.append([path for part in two_methods.parts for path in figures_of(part, outcomes, tmp_path / name)])
    assert [path.name for path in written[0]] == [
        *(f"methods-digits-{name}.{suffix}" for name in ("curves", "tradeoff", "reach") for suffix in ("png", "svg")),
        "period-sweep.png",
        "period-sweep.svg",
    ]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(*written, strict=True))


def test_a_part_without_outcomes_has_no_figure(two_methods, tmp_path):
    assert list(figures_of(two_methods.parts[0], {}, tmp_path)) == []


def test_a_line_is_over_the_seeds_that_all_its_steps_have(two_methods, outcomes):
    part = two_methods.parts[1]
    runs = {(its.cell["P"], its.seed): its.key for its in part.planned}
    low, *others = sorted(seed for step, seed in runs if step == "1")
    known = {
        key: replace(outcomes[key], accuracy={"classifier": (0.1 * seed, 0.0)}) for (_, seed), key in runs.items()
    }
    whole = Cells(part, {}, known).along(own, "n = 3")
    assert {its.count for its in whole.values()} == {1 + len(others)}
    fewer = {key: its for key, its in known.items() if key not in {runs["1", seed] for seed in others}}
    assert {x: (its.count, its.mean) for x, its in Cells(part, {}, fewer).along(own, "n = 3").items()} == {
        "1": (1, pytest.approx(10 * low)),
        "5": (1, pytest.approx(10 * low)),
    }
    apart = {runs["1", low]: known[runs["1", low]], runs["5", others[0]]: known[runs["5", others[0]]]}
    assert sorted(its.count for its in Cells(part, {}, apart).along(own, "n = 3").values()) == [0, 1]
