"""A small experiment, and outcomes written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gfpl_flwr.experiments.design import Experiment, Planned
from gfpl_flwr.experiments.experiment_file import read_experiment
from gfpl_flwr.experiments.outcomes import Outcome

SMALL = """
title = "Two methods"
source = "by hand"
seeds = [1, 2]

[[more-seeds]]
where = { ways = "n = 3" }
seeds = [3]

[options]
num-sites = 3
rounds = 2
"gfpl.first-exchange" = 1
"gfpl.pseudo-per-class" = 5
common-test-shots = 5
common-test-every = 1

[[parts]]
name = "methods"
show = "methods"
rows = "method"
columns = "ways"

[parts.axes.dataset]
Digits = { dataset = "digits" }

[parts.axes.method]
Local = { algorithm = "local" }
GFPL = { algorithm = "gfpl" }

[parts.axes.ways]
"n = 2" = { ways = 2, ways-spread = 0 }
"n = 3" = { ways = 3, ways-spread = 1 }

[parts.paper.accuracy]
"Digits/GFPL/n = 3" = "99.9"

[parts.paper.scalars]
"Digits/GFPL" = "2"

[[parts]]
name = "period"
title = "Rounds between exchanges"
show = "lines"
x = "P"
lines = "ways"

[parts.axes.P]
"1" = { "gfpl.exchange-every" = 1 }
"5" = {}

[parts.axes.ways]
"n = 3" = { ways = 3, ways-spread = 1 }
"""


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Return a function that writes an experiment: the small one, with words replaced."""

    def written(*changes: tuple[str, str], name: str = "small") -> Path:
        text = SMALL
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return written


@pytest.fixture
def two_methods(write) -> Experiment:
    """The small experiment."""
    return read_experiment(write())


def outcome(planned: Planned, mean: float, **changes: Any) -> Outcome:
    """An outcome of two rounds and two sites, with this accuracy at the end."""
    facts: dict[str, Any] = {
        "key": planned.key,
        "options": dict(planned.options),
        "versions": {"python": "3", "torch": "2", "flwr": "1", "gfpl-flwr": "0"},
        "command": "by hand",
        "head": "classifier",
        "accuracy": {"classifier": (mean, 0.02)},
        "by_site": {"0": mean - 0.02, "1": mean + 0.02},
        "trained": mean - 0.1,
        "curve": [(1, mean - 0.3, 0.05), (2, mean, 0.02)],
        "common": {"all": [(2, 0.4)], "seen": [(2, 0.9)], "unseen": [(2, 0.1)]},
        "rounds_to_99": 2,
        "messages": 6,
        "up": (2_000_000, 1_900_000, 8000),
        "down": (1_000_000, 900_000, 4000),
        "exchanges": 2,
        "merges": [(2, 30, 10)],
        "failures": 0,
        "seconds": 1.5,
    }
    return Outcome(**facts | changes)


@pytest.fixture
def outcomes(two_methods) -> dict[str, Outcome]:
    """Outcomes of every run: GFPL is 2 points better than Local with seeds 1 and 2, 5 with seed 3."""
    found = {}
    for part in two_methods.parts:
        for its in part.planned:
            local = its.options.get("algorithm") == "local"
            gain = 0.0 if local else 0.05 if its.seed == 3 else 0.02
            found[its.key] = outcome(its, 0.8 + 0.01 * its.seed + gain)
    return found
