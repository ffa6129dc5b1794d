"""The figures of an experiment, from the outcomes of its runs alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from gfpl_flwr.experiments.design import Part
from gfpl_flwr.experiments.outcomes import Outcome


def figures_of(part: Part, outcomes: Mapping[str, Outcome], folder: Path) -> Iterator[Path]:
    """Write the figures of a part, each as PNG and SVG, and yield their paths."""
    yield from ()
