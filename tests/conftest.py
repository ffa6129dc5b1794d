"""What several test modules share: one torch thread, and a federation in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "num-sites": 4,
    "rounds": 4,
    "gfpl.first-exchange": 2,
    "gfpl.exchange-every": 1,
    "gfpl.pseudo-per-class": 20,
    "fedpa.generator-steps": 5,
    "fedrep.head-epochs": 2,
    "seed": 7,
    "device": "cpu",
}
"""A GFPL run of a few seconds: exchanges after rounds 2, 3 and 4."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def small(tmp_path, data_dir) -> dict[str, Any]:
    """Configuration of the small federation, with folders of this test."""
    return SMALL | {"name": "run", "output-dir": str(tmp_path), "data-dir": str(data_dir)}


@pytest.fixture
def federate(small) -> Callable[..., Path]:
    """Return a function that runs the small federation, with changes, and returns the run's folder."""
    from gfpl_flwr.flower.inprocess import run_in_process

    def run(name: str = "run", /, **changes: Any) -> Path:
        flat = small | {"name": name}
        flat |= {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
        return run_in_process(flat).path

    return run
