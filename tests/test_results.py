"""What the documents say is what was measured."""

import re
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import precision_results as precision
from benchmarks import results, speed_gpu
from benchmarks import speed_results as speed
from benchmarks.pairs import Pair
from benchmarks.speed import plain
from benchmarks.speed_gpu import operations
from benchmarks.speed_text import NO_GPU, PARTS
from benchmarks.speed_training import Plain, sites_of
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.experiments.cells import own
from gfpl_flwr.experiments.experiment_file import read_experiment
from gfpl_flwr.experiments.outcomes import read_outcomes, write_outcomes
from gfpl_flwr.experiments.spread import Interval
from gfpl_flwr.models import build_extractor

ROOT = Path(__file__).parents[1]


def test_the_results_are_generated_from_the_committed_outcomes():
    assert results.REPORT.read_text() == results.document(), "run: python -m benchmarks.results document"


def test_the_results_show_the_figures_that_the_committed_outcomes_give(tmp_path):
    drawn = {path.relative_to(tmp_path) for path in results.draw(tmp_path)}
    assert drawn == {path.relative_to(results.IMAGES) for path in results.IMAGES.rglob("*.png")}, (
        "run: python -m benchmarks.results document"
    )
    text = results.REPORT.read_text()
    assert all(f"](images/results/{path.as_posix()})" in text for path in drawn)


def test_every_experiment_has_its_place_in_the_results():
    assert sorted(results.ORDER) == sorted(path.stem for path in results.EXPERIMENTS.glob("*.toml"))


def test_of_fewer_than_three_seeds_nothing_is_said_of_who_is_ahead(monkeypatch):
    gaps = {("a", "Local"): Interval(2.0, 1.0, 3), ("b", "Local"): Interval(57.0, None, 1)}
    gaps |= {("a", "FedAvg"): Interval(-2.0, 1.0, 3), ("b", "FedAvg"): Interval(-2.0, 1.0, 4)}
    gaps |= {("a", "FedPer"): Interval(-2.0, 1.0, 2)}
    monkeypatch.setattr(
        results, "verdicts", lambda *_: [("", column, row, gap) for (column, row), gap in gaps.items()]
    )
    experiment, outcomes = next(results.experiments())
    cells = SimpleNamespace(
        part=experiment.parts[0], outcomes=outcomes, where="", page={}, of=lambda role: ["a", "b"]
    )
    table, *words = results._where_it_wins(cells, own, "less each", ", by hand")
    assert "| Local | +2.00 ± 1.00 [3] | +57.00 [1] |" in table
    assert words == [
        "GFPL is ahead of Local (a); behind FedAvg, by hand.\n",
        "Of fewer than 3 seeds nothing follows: Local (b), FedPer (a).\n",
    ]


def test_outcomes_that_belong_to_no_run_are_not_dropped_unasked(monkeypatch, tmp_path):
    ((key, outcome),) = results.committed("fig2").items()
    write_outcomes(tmp_path / "gfpl-mnist.jsonl", [outcome])
    write_outcomes(tmp_path / "gfpl-none.jsonl", [replace(outcome, key="gfpl-none-0")])
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"1 of 2 committed outcomes are of no run .*: --drop"):
        results.collect(tmp_path, ["fig2"], drop=False)
    assert results.stored().keys() == {key, "gfpl-none-0"}
    results.collect(tmp_path, ["fig2"], drop=True)
    assert results.stored() == {key: outcome}
    assert [path.name for path in tmp_path.iterdir()] == ["gfpl-mnist.jsonl"]


def test_what_was_reported_is_not_replaced_by_another_run(monkeypatch, tmp_path):
    ((key, outcome),) = results.committed("fig2").items()
    again = replace(outcome, seconds=outcome.seconds + 1)
    write_outcomes(tmp_path / "gfpl-mnist.jsonl", [outcome])
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "finished", lambda *_: {key: again})
    results.collect(tmp_path, ["fig2"], drop=False)
    assert results.committed("fig2") == {key: outcome}
    (tmp_path / "gfpl-mnist.jsonl").unlink()
    results.collect(tmp_path, ["fig2"], drop=False)
    assert results.committed("fig2")[key].seconds == again.seconds


def test_every_run_has_one_outcome_in_the_file_of_its_method_and_data():
    keys = [key for path in results.RESULTS.glob("*.jsonl") for key in read_outcomes(path)]
    assert len(keys) == len(set(keys)) > 300
    for path in results.RESULTS.glob("*.jsonl"):
        assert {key.rpartition("-")[0] for key in read_outcomes(path)} == {path.stem}


def test_committed_outcomes_are_those_of_runs_of_an_experiment():
    wanted = {
        key: its
        for name in reversed(results.ORDER)
        for key, its in read_experiment(results.EXPERIMENTS / f"{name}.toml").runs().items()
    }
    outcomes = results.stored()
    assert outcomes.keys() <= wanted.keys()
    assert not any("-dir" in its.command for its in outcomes.values())  # of the machine that measured
    assert all(dict(its.options) == dict(wanted[key].options) for key, its in outcomes.items())


def test_the_page_on_precision_is_generated_from_the_committed_measurements():
    assert precision.REPORT.read_text() == precision.document(precision.load()), (
        "run: python -m benchmarks.precision table"
    )


def test_every_precision_was_measured_with_every_seed_and_with_the_code_it_is_compared_to():
    runs = precision.load()["runs"]
    measured = sorted((entry["setting"], entry["seed"], entry["precision"]) for entry in runs)
    assert measured == sorted(
        (setting, seed, form)
        for setting, seeds in precision.SEEDS.items()
        for seed in seeds
        for form in precision.PRECISIONS
    )
    codes = {(entry["setting"], entry["seed"], entry["code"]) for entry in runs}
    assert len(codes) == sum(map(len, precision.SEEDS.values()))


def test_components_were_measured_in_every_setting():
    measured = {(entry["setting"], entry["of"]) for entry in precision.load()["components"]}
    assert measured == {(setting, of) for setting in precision.SETTINGS for of in ("sites", "fused")}


def test_the_page_on_performance_is_generated_from_the_committed_measurements():
    assert speed.REPORT.read_text() == speed.document(speed.load()), "run: python -m benchmarks.speed table"


def test_every_part_of_performance_was_measured():
    assert [part for part in PARTS if part not in speed.load()] in ([], ["gpu"])


TINY = {"dataset": "digits", "num-sites": 2, "shots": 10, "test-shots": 2}


def test_the_part_for_a_gpu_measures_training_on_the_device_that_it_is_given(tmp_path):
    found = plain(speed_gpu.found(tmp_path, torch.device("cpu"), works=(("CNN, digits", TINY, 10),)))
    (pair,) = speed.pairs_of(found)
    assert (pair.ours, pair.theirs, pair.clock) == ("one cohort of 2", "one site after the other", "wall")
    assert found["rates"][0]["share_of_peak"] > 0
    assert "aten::convolution_backward" in found["operators"]
    measured = {part: its for part, its in speed.load().items() if part != "gpu"}
    assert NO_GPU in speed.document(measured)
    elsewhere = measured["training"]["conditions"] | {"processor": "another"}
    page = speed.document(measured | {"gpu": found | {"conditions": elsewhere}})
    assert "| CNN, digits |" in page
    assert page.count("cores of another;") == 1
    assert NO_GPU not in page


def test_the_operations_of_training_are_those_of_every_layer_forth_and_back(tmp_path):
    algorithm, sites = sites_of(TINY, tmp_path)
    dim = algorithm.projection_dim
    first, others = 10 * 9 * 64, 20 * 90 * 16 + 80 * 50 + 50 * dim + dim * 10  # products a sample
    assert operations(algorithm, sites[0]) == 2 * (2 * first + 3 * others)


def test_the_plain_loop_of_the_benchmark_minimises_the_loss_of_the_package():
    algorithm = GFPL(projection_dim=12)
    extractor = build_extractor("cnn", (1, 28, 28))
    model = algorithm.build_model(extractor, 50, 10, dropout=0.5, seed=3).eval()
    plain = Plain("cnn", model.etf).eval()
    plain.load_state_dict(model.state_dict())
    images, labels = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 3, 9])
    expected = algorithm.loss(model, model.extractor(images), labels)
    torch.testing.assert_close(plain.loss(plain.extractor(images), labels), expected)


def test_a_goal_counts_as_reached_by_the_median_of_the_ratios_turn_by_turn():
    # 2/1, 9/3 and 8/2: the median is 3, the ratio of the medians would be 8/2 = 4
    pair = Pair("training", "work", "ours", "theirs", [1.0, 3.0, 2.0], [2.0, 9.0, 8.0], "cpu", 3.0, "a note")
    missed = Pair("training", "work", "ours", "theirs", [1.0, 3.0, 2.0], [2.0, 8.9, 8.0], "cpu", 3.0)
    _, _, heading, reached, not_reached = speed.pair_rows([pair, missed], ["a note"])
    assert heading == "| **work** | | | | | | |"
    assert reached == "| ours | theirs | 3.00 | 2.00 to 4.00 | 3, reached | 2.00 / 8.00 | 1 |"
    assert "| 3, missed |" in not_reached


def test_the_readme_shows_the_rows_of_the_results():
    assert "\n".join(results.readme_rows()) in (ROOT / "README.md").read_text()


def test_the_readme_tells_the_measured_seconds_of_whole_runs():
    runs = speed.load()["round"]["runs"]
    told = re.findall(r"(\d+) s\b", (ROOT / "README.md").read_text().split("In the paper's setting")[1])[:4]
    ours, *peers = ((run["program"], f"{statistics.median(run['seconds']):.0f}") for run in runs)
    quick, plain = ([seconds for program, seconds in peers if threads in program] for threads in ("2 th", "1 th"))
    assert told == [ours[1], *quick, plain[1]]
    assert f"{plain[0]} and {plain[1]} s with one" in (ROOT / "README.md").read_text()


def test_the_files_the_readme_points_to_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
