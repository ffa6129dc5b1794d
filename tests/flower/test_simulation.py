"""The same two apps on Flower's simulation engine and in one process give the same accuracies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-c", "from gfpl_flwr.cli import main; main()", "run"]
SETTINGS = [
    "num-sites=4",
    "rounds=4",
    "gfpl.first-exchange=2",
    "gfpl.exchange-every=1",
    "gfpl.pseudo-per-class=20",
]


def run(engine: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    where = ["--output-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]
    return subprocess.run(
        [*RUN, "--engine", engine, "--name", engine, *settings, *where, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def measured(folder: Path, engine: str) -> list:
    lines = (folder / "runs" / engine / "rounds.jsonl").read_text().splitlines()
    return [
        [[site["site"], site["accuracy"], site["diagnostics"]] for site in json.loads(line)["sites"]]
        for line in lines
    ]


@pytest.mark.ray
def test_both_engines_give_the_same_result(tmp_path):
    for engine in ("inprocess", "flower"):
        done = run(engine, tmp_path)
        assert done.returncode == 0, done.stderr
    assert measured(tmp_path, "flower") == measured(tmp_path, "inprocess")
    one, other = (
        load_file(tmp_path / "runs" / engine / "prototypes.safetensors") for engine in ("flower", "inprocess")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])
    summary = json.loads((tmp_path / "runs" / "flower" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert {"superlink", "submit", "start", "run"} <= summary["launch_seconds"].keys()


@pytest.mark.ray
def test_a_run_that_fails_on_flower_exits_with_its_cause_on_one_line(tmp_path):
    done = run("flower", tmp_path, "-c", "learning-rate=1e30")
    assert done.returncode == 1
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "visit 1: 0 of 4 sites answered" in error[0]
    assert "training diverged" in error[0]
