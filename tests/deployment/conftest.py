"""A federation of processes, torn down whatever happens."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.deployment import ROOT, Deployment, Service
from gfpl_flwr.data.datasets import load
from gfpl_flwr.flower.launch.local_superlink import marked_processes

GFPL: dict[str, Any] = {
    "dataset": "digits",
    "rounds": 5,
    "gfpl.first-exchange": 2,
    "gfpl.exchange-every": 1,
    "gfpl.pseudo-per-class": 20,
    "seed": 7,
}
"""Exchanges after rounds 2, 3, 4 and 5, and a last visit that brings the last fused prototypes."""


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    here = Deployment(tmp_path / "d")
    try:
        with here:
            yield here
    finally:
        for log in sorted((tmp_path / "d").glob("*/*.log")):  # pytest shows them where the test failed
            print(f"==> {log}", *log.read_text(errors="replace").splitlines()[-40:], sep="\n")
        left = [pid for home in (tmp_path / "d").iterdir() for pid in marked_processes(home)]
        shutil.rmtree(tmp_path / "d")
        assert left == []


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared digits: what a device without scikit-learn has."""
    folder = tmp_path_factory.mktemp("digits")
    load("digits", folder)
    return folder


@pytest.fixture
def four(deployment: Deployment, digits: Path) -> Deployment:
    """The federation with four nodes that hold a share of the digits each."""
    for site in range(4):
        add_node(deployment, site, digits)
    deployment.connected(4)
    return deployment


@cache
def slowness() -> float:
    """How many times longer than the 2.5 s for which deadlines were chosen the imports of a site take here."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import client_app, torch"], cwd=ROOT, check=True)
    return max(1.0, (time.monotonic() - began) / 2.5)


def add_node(deployment: Deployment, site: int, data_dir: Path, *, sites: int = 4, **more: Any) -> Service:
    """Add the node of a site whose share of the data is its number's."""
    state = str(deployment.folder / f"state-{site}")
    config = {"partition-id": site, "num-partitions": sites, "data-dir": str(data_dir), "state-dir": state}
    return deployment.node(f"node-{site}", config, **more)


def ended(run: Any, timeout: float = 420) -> str:
    """Wait for the end of ``gfpl run`` and return what it printed; the run must have been completed."""
    try:
        printed, _ = run.communicate(timeout=timeout * slowness())
    except subprocess.TimeoutExpired:
        run.kill()
        printed, _ = run.communicate()
        pytest.fail(f"not ended after {timeout * slowness():.0f} s; it printed\n{printed}")
    assert run.returncode == 0, printed
    return printed


def record(deployment: Deployment, name: str) -> list[dict[str, Any]]:
    lines = (deployment.runs / name / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def failures(line: dict[str, Any]) -> dict[Any, str]:
    return {site["site"]: site["reason"] for site in line["sites"] if site["status"] != "ok"}


def wait_for(what: Callable[[], Any], timeout: float = 240) -> Any:
    deadline = time.monotonic() + timeout * slowness()
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def visits_done(deployment: Deployment, name: str) -> int:
    path = deployment.runs / name / "rounds.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def assert_equal_to_the_bit(one: Path, other: Path) -> None:
    """Compare the fused prototypes of two runs."""
    a, b = (load_file(folder / "prototypes.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
