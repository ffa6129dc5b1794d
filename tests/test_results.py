"""What the documents say is what was measured."""

import re
from pathlib import Path

from benchmarks import accuracy

ROOT = Path(__file__).parents[1]


def test_the_results_are_generated_from_the_committed_summaries():
    assert accuracy.REPORT.read_text() == accuracy.document(accuracy.load()), (
        "run: python -m benchmarks.accuracy table"
    )


def test_every_variant_was_measured_with_every_seed():
    measured = {(entry["variant"], entry["seed"]) for entry in accuracy.load()}
    assert measured == {(variant, seed) for variant in accuracy.VARIANTS for seed in accuracy.SEEDS}


def test_the_readme_shows_the_rows_of_the_results():
    rows = list(accuracy.readme_rows(accuracy.load()))
    assert "\n".join(rows) in (ROOT / "README.md").read_text()


def test_the_files_the_readme_points_to_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
