"""What happens to one site is that site's loss, is told with its reason, and never ends a run."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.deployment import Deployment, Service

from .conftest import GFPL, add_node, ended, failures, record, slowness, visits_done, wait_for

pytestmark = pytest.mark.deployment
ROOT_NEEDED = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: mounts a small file system, or makes namespaces"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 kB: a model of the digits' network takes 100 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def has_order(node: Service, visit: int) -> bool:
    """Return whether a node has all of a visit's order; the ClientApp of the visit before may live still."""
    return node.log().count("Received successfully") == visit


def kept_running(node: Service) -> Service:
    """Start a node again that has ended, after some seconds, as a device's service does."""
    if node.children[0].poll() is not None:
        time.sleep(5)
        node.kill()
        node.start()
    return node


@ROOT_NEEDED
def test_every_trouble_of_a_site_is_its_own_and_is_told(deployment: Deployment, digits: Path, small_disk: Path):
    """Site 1 is killed and comes back, 2 joins late, 3 never answers, 4's disk is full, 5 has no data; 0 is well."""
    deadlines = {"visit-deadline": round(35 * slowness()), "node-deadline": round(20 * slowness())}
    options = GFPL | {"num-sites": 6, "quorum": 0.1, "local-epochs": 12} | deadlines
    nothing = deployment.folder / "nothing"
    (nothing / "train").mkdir(parents=True)
    for site in (0, 1):
        add_node(deployment, site, digits, sites=6)
    add_node(deployment, 3, digits, sites=6, with_app=False)
    full = {"partition-id": 4, "data-dir": str(digits), "state-dir": str(small_disk)}
    deployment.node("node-4", full)
    # A prepared file that is empty is what is left of a copy that was cut off.
    shutil.copytree(digits, deployment.folder / "cut")
    (deployment.folder / "cut" / "digits.safetensors").write_bytes(b"")
    deployment.node("node-5", {"partition-id": 5, "data-dir": str(deployment.folder / "cut")})
    deployment.connected(5)
    run = deployment.run("trouble", options)
    killed = deployment.nodes["node-1"]
    wait_for(lambda: visits_done(deployment, "trouble") == 1)
    wait_for(lambda: has_order(killed, 2))
    killed.wait_for_process("flwr-clientapp")
    time.sleep(3)  # its imports are over: it trains
    killed.kill()
    late = add_node(deployment, 2, digits, sites=6)
    # The SuperLink takes a killed node for alive for a minute, and its key for in use: each start fails until then.
    joined = killed.log().count("SuperNode ID")
    killed.start()
    wait_for(lambda: run.poll() is not None or kept_running(killed).log().count("SuperNode ID") > joined)
    ended(run)
    lines = record(deployment, "trouble")
    assert [line["visit"] for line in lines] == [1, 2, 3, 4, 5]
    outcomes = {
        site: [entry for line in lines for entry in line["sites"] if entry["site"] == site] for site in range(6)
    }
    assert [entry["status"] for entry in outcomes[0]] == ["ok"] * 5
    # Killed in visit 2; back with its model of visit 1 in a later one.
    ok = [line["visit"] for line in lines if 1 not in failures(line)]
    assert ok[0] == 1
    assert 2 not in ok
    assert ok[-1] == 5
    back = next(entry for entry in outcomes[1][1:] if entry["status"] == "ok")
    assert back["started_from"] == 1
    # Late: not in visit 1, in the last one.
    assert failures(lines[0])["1 more"] == "no node of this site has ever connected"
    assert outcomes[2][-1]["status"] == "ok"
    assert late.processes()
    # These never said which sites they are, but their keys have names.
    for line in lines:
        assert failures(line)["node node-3"] == f"no reply within visit-deadline = {deadlines['visit-deadline']} s"
        assert "MB free, the model needs" in failures(line)["node node-4"]
        assert "digits.safetensors cannot be read" in failures(line)["node node-5"]
    report, _ = deployment.gfpl("report", str(deployment.runs / "trouble")).communicate(timeout=60)
    assert "trouble: site node node-3 left out of visits 1, 2, 3, 4, 5: no reply within visit-deadline" in report
    assert "MB free, the model needs" in report


@pytest.fixture
def far_away() -> Iterator[tuple[list[str], str, str]]:
    """A network namespace on a wire of its own: prefix of its commands, name and address of the wire's end here."""
    name = f"gfpl-{os.getpid() % 10000}"
    near, far, here, there = f"{name}-a", f"{name}-b", "10.213.7.1", "10.213.7.2"
    lines = (
        f"ip netns add {name}",
        f"ip link add {near} type veth peer name {far} netns {name}",
        f"ip addr add {here}/30 dev {near}",
        f"ip link set {near} up",
        f"ip -n {name} addr add {there}/30 dev {far}",
        f"ip -n {name} link set {far} up",
        f"ip -n {name} link set lo up",
    )
    try:
        for line in lines:
            done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {line}: {done.stderr.strip()}")
        yield ["ip", "netns", "exec", name], near, here
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", near], check=False, capture_output=True)


@ROOT_NEEDED
def test_a_node_that_is_cut_off_for_90_seconds_comes_back(far_away, digits: Path, tmp_path: Path):
    prefix, wire, address = far_away
    with Deployment(tmp_path / "d", host=address) as deployment:
        add_node(deployment, 0, digits, sites=2)
        cut_off = add_node(deployment, 1, digits, sites=2, prefix=prefix)
        deployment.connected(2)
        # More visits than anybody waits for: how soon a node tries again after a failure is Flower's affair.
        options = {"num-sites": 2, "rounds": 500, "gfpl.first-exchange": 1, "visit-deadline": 200, "local-epochs": 10}
        run = deployment.run("cut", GFPL | options)
        wait_for(lambda: visits_done(deployment, "cut") == 1)
        wait_for(lambda: has_order(cut_off, 2))
        subprocess.run(["ip", "link", "set", wire, "down"], check=True)
        began = time.monotonic()
        time.sleep(90)
        subprocess.run(["ip", "link", "set", wire, "up"], check=True)
        assert 90 <= time.monotonic() - began < 95
        up = visits_done(deployment, "cut")
        wait_for(lambda: any(1 not in failures(line) for line in record(deployment, "cut")[max(up, 2) :]))
        assert run.poll() is None
        run.terminate()
        run.communicate(timeout=60)
        lines = record(deployment, "cut")
        assert [line["visit"] for line in lines] == list(range(1, len(lines) + 1))
        assert all(0 not in failures(line) for line in lines)
        missed = [line["visit"] for line in lines if 1 in failures(line)]
        assert missed[0] == 2
        assert missed == list(range(2, 2 + len(missed)))
        assert "code 5" in failures(lines[1])[1]
        assert set(failures(lines[2]).values()) <= {"not connected when the visit began"}
        # What it did while nobody heard it is its own: it goes on from there.
        back = next(entry for line in lines[missed[-1] :] for entry in line["sites"] if entry["site"] == 1)
        assert back["started_from"] == 2
