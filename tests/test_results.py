"""What the documents say is what was measured."""

import re
from pathlib import Path

from benchmarks import accuracy
from benchmarks import precision_results as precision

ROOT = Path(__file__).parents[1]


def test_the_results_are_generated_from_the_committed_summaries():
    assert accuracy.REPORT.read_text() == accuracy.document(accuracy.load()), (
        "run: python -m benchmarks.accuracy table"
    )


def test_every_variant_was_measured_with_every_seed():
    measured = {(entry["variant"], entry["seed"]) for entry in accuracy.load()}
    assert measured == {(variant, seed) for variant in accuracy.VARIANTS for seed in accuracy.SEEDS}


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


def test_the_readme_shows_the_rows_of_the_results():
    rows = list(accuracy.readme_rows(accuracy.load()))
    assert "\n".join(rows) in (ROOT / "README.md").read_text()


def test_the_files_the_readme_points_to_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
