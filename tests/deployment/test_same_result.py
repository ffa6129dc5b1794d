"""The same run gives the same prototypes whatever carries it, and whatever happens to the server meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.deployment import NAME, ROOT, SCRIPTS, Deployment

from .conftest import GFPL, add_node, assert_equal_to_the_bit, ended, failures, record, visits_done, wait_for

pytestmark = pytest.mark.deployment


def undisturbed(engine: str, folder: Path, digits: Path, **options: Any) -> Path:
    """Run the same on another engine; ``flower`` is Flower's simulation engine."""
    whole = GFPL | {"num-sites": 4} | options
    settings = [word for key, value in whole.items() for word in ("-c", f"{key}={value}")]
    where = ["--name", engine, "--output-dir", str(folder), "--data-dir", str(digits)]
    done = subprocess.run(
        [f"{SCRIPTS}/gfpl", "run", "--engine", engine, *settings, *where],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / engine


def measured(line: dict[str, Any]) -> list[Any]:
    return [(site["site"], site["accuracy"], site["diagnostics"]) for site in line["sites"]]


@pytest.mark.ray
def test_four_devices_with_tls_and_keys_give_what_the_simulation_gives(
    four: Deployment, digits: Path, tmp_path: Path
):
    printed = ended(four.run("devices", GFPL | {"num-sites": 4}))
    assert "visit 5/5  4/4 sites" in printed
    lines = record(four, "devices")
    assert [line["exchange"] for line in lines] == [True] * 4 + [False]
    assert not any(failures(line) for line in lines)
    simulated = undisturbed("flower", tmp_path / "simulated", digits)
    assert_equal_to_the_bit(four.runs / "devices", simulated)
    # Every accuracy of every site and round as well, so also what was retrained on the last fused prototypes.
    other = [json.loads(line) for line in (simulated / "rounds.jsonl").read_text().splitlines()]
    assert len(other) == len(lines) == 5
    for here, there in zip(lines, other, strict=True):
        assert measured(here) == measured(there)


def test_neither_a_killed_superlink_nor_a_killed_server_changes_the_result(
    deployment: Deployment, digits: Path, tmp_path: Path
):
    for site in range(2):
        add_node(deployment, site, digits, sites=2)
    deployment.connected(2)
    # A node that is just receiving an order when the run ends would keep its replies back until it gets another one.
    run = deployment.run("mine", GFPL | {"num-sites": 2, "ask-again-after": 20})
    # In the middle of visit 2: a node is at work on it when the SuperLink goes.
    wait_for(lambda: visits_done(deployment, "mine") == 1)
    deployment.nodes["node-1"].wait_for_process("flwr-clientapp")
    deployment.superlink.kill()
    time.sleep(5)
    deployment.superlink.start()
    deployment.wait_until_healthy()
    wait_for(lambda: visits_done(deployment, "mine") >= 3)
    assert not any(failures(line) for line in record(deployment, "mine"))
    # In the middle of visit 4: now the server's own half goes, and with it the run.
    deployment.nodes["node-1"].wait_for_process("flwr-clientapp")
    deployment.serverapp.kill()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode != 0
    done = visits_done(deployment, "mine")
    assert done in (3, 4)
    deployment.serverapp.start()
    ended(deployment.gfpl("run", NAME, "--resume", "mine", "--output-dir", str(deployment.runs)))
    lines = record(deployment, "mine")
    assert [line["visit"] for line in lines] == [1, 2, 3, 4, 5]
    assert not any(failures(line) for line in lines)
    other = undisturbed("inprocess", tmp_path / "undisturbed", digits, **{"num-sites": 2})
    assert_equal_to_the_bit(deployment.runs / "mine", other)


def test_nodes_that_were_receiving_an_order_when_their_run_was_stopped_go_on_with_it(
    deployment: Deployment, digits: Path, tmp_path: Path
):
    options = {"num-sites": 2, "rounds": 3}
    stopped = tmp_path / "stopped"
    slow = [sys.executable, str(Path(__file__).with_name("slow_supernode.py")), str(stopped)]
    nodes = [add_node(deployment, site, digits, sites=2, supernode=slow) for site in range(2)]
    deployment.connected(2)
    run = deployment.run("mine", GFPL | options | {"ask-again-after": 20})
    # Each is receiving the order of visit 2 and has started the ClientApp for it.
    wait_for(lambda: all(node.log().count("Start `flwr-clientapp` process") == 2 for node in nodes))
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert visits_done(deployment, "mine") == 1
    # Replies to the stopped run are made. From now on Flower's node keeps each reply back until the next order.
    stopped.touch()
    wait_for(lambda: not any(node.processes("flwr-clientapp") for node in nodes))
    ended(deployment.gfpl("run", NAME, "--resume", "mine", "--output-dir", str(deployment.runs)))
    lines = record(deployment, "mine")
    assert [line["visit"] for line in lines] == [1, 2, 3]
    assert not any(failures(line) for line in lines)
    assert any("asked again" in its["note"] for line in lines[1:] for its in line["notes"])
    other = undisturbed("inprocess", tmp_path / "undisturbed", digits, **options)
    assert_equal_to_the_bit(deployment.runs / "mine", other)
