"""The same run gives the same prototypes whatever carries it, and whatever happens to the server meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.deployment import ROOT, Deployment

from .conftest import GFPL, add_node, assert_equal_to_the_bit, ended, failures, record, visits_done, wait_for

pytestmark = pytest.mark.deployment


def undisturbed(engine: str, folder: Path, digits: Path, **options: Any) -> Path:
    """Run the same on another engine; ``flower`` is Flower's simulation engine."""
    settings = [word for key, value in (GFPL | {"num-sites": 4} | options).items() for word in ("-c", f"{key}={value}")]
    where = ["--name", engine, "--output-dir", str(folder), "--data-dir", str(digits)]
    done = subprocess.run(
        [sys.executable, "-c", "from gfpl_flwr.cli import main; main()", "run", "--engine", engine, *settings, *where],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / engine


@pytest.mark.ray
def test_four_devices_with_tls_and_keys_give_what_the_simulation_gives(four: Deployment, digits: Path, tmp_path: Path):
    printed = ended(four.run("devices", GFPL | {"num-sites": 4}))
    assert "visit 5/5  4/4 sites" in printed
    lines = record(four, "devices")
    assert [line["exchange"] for line in lines] == [True] * 4 + [False]
    assert not any(failures(line) for line in lines)
    simulated = undisturbed("flower", tmp_path / "simulated", digits)
    assert_equal_to_the_bit(four.runs / "devices", simulated)
    # Every accuracy of every site and round as well, so also what was retrained on the last fused prototypes.
    other = [line for line in (simulated / "rounds.jsonl").read_text().splitlines()]
    assert len(other) == len(lines) == 5
    import json

    measured, simulated_too = (
        [[(site["site"], site["accuracy"], site["diagnostics"]) for site in line["sites"]] for line in some]
        for some in (lines, map(json.loads, other))
    )
    assert measured == simulated_too
    # Nothing but a second of the run's own clock says that the node's app needed more than its share of memory.
    assert all("error" not in four.nodes[f"node-{site}"].log().lower() for site in range(4))


def test_neither_a_killed_superlink_nor_a_killed_server_changes_the_result(four: Deployment, digits: Path, tmp_path: Path):
    options = GFPL | {"num-sites": 4}
    run = four.run("mine", options)
    # In the middle of visit 2: a node is at work on it when the SuperLink goes.
    wait_for(lambda: visits_done(four, "mine") == 1)
    four.nodes["node-2"].wait_for_process("flwr-clientapp")
    four.superlink.kill()
    time.sleep(5)
    four.superlink.start()
    four.wait_until_healthy()
    wait_for(lambda: visits_done(four, "mine") >= 3)
    assert not any(failures(line) for line in record(four, "mine"))
    # In the middle of visit 4: now the server's own half goes, and with it the run.
    four.nodes["node-2"].wait_for_process("flwr-clientapp")
    four.serverapp.kill()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode != 0
    done = visits_done(four, "mine")
    assert done in (3, 4)
    four.serverapp.start()
    ended(four.run("mine", {}, "--resume"))
    lines = record(four, "mine")
    assert [line["visit"] for line in lines] == [1, 2, 3, 4, 5]
    assert not any(failures(line) for line in lines)
    assert_equal_to_the_bit(four.runs / "mine", undisturbed("inprocess", tmp_path / "undisturbed", digits))
