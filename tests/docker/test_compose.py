"""Both federations in containers: up, run, watch, results, down."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import PROJECT, ROOT, Stack, docker, inspected, node_ids, wait_for

pytestmark = pytest.mark.docker
RUN = "-c rounds=5 -c gfpl.first-exchange=2 -c gfpl.exchange-every=1 -c gfpl.pseudo-per-class=20 --name trial"
PROTOTYPES: dict[bool, dict[str, torch.Tensor]] = {}
"""Fused by a run of each federation."""


CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
    print("open")
except OSError as error:
    print(type(error).__name__)
"""


def test_a_run_ends_and_its_results_come_out(stack: Stack):
    printed = stack.make("submit", f"ARGS={RUN}")
    assert "visit 5/5  3/3 sites" in printed
    assert "4 exchanges" in printed
    status = stack.make("status")
    assert "3 of 3 nodes are connected" in status
    stack.make("results")
    folder = stack.folder / "runs" / "trial"
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert all(site["status"] == "ok" for line in lines for site in line["sites"])
    PROTOTYPES[stack.tls] = load_file(folder / "prototypes.safetensors")
    assert sum(len(tensor) for tensor in PROTOTYPES[stack.tls].values()) > 0
    if len(PROTOTYPES) == 2:  # encryption changes no bit of it
        assert all(torch.equal(PROTOTYPES[True][name], tensor) for name, tensor in PROTOTYPES[False].items())


def test_no_container_has_more_rights_than_it_needs(stack: Stack):
    containers = stack.left()["container"]
    assert len(containers) == 8 + stack.tls
    for container in containers:
        (facts,) = json.loads(docker("inspect", container))
        name, host = facts["Name"], facts["HostConfig"]
        assert facts["State"]["Running"], name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["Memory"] > 0, name
        assert host["PidsLimit"] == 256, name
        assert host["RestartPolicy"]["Name"] == "unless-stopped", name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert not host["Privileged"], name
        owners = {line.split()[1] for line in docker("top", container, "-eo", "pid,uid").splitlines()[1:]}
        assert owners == {"49999"}, name
        published = [port for ports in facts["NetworkSettings"]["Ports"].values() for port in ports or []]
        assert bool(published) is ("gateway" in name), name


def test_what_has_a_health_check_is_healthy(stack: Stack):
    def states() -> dict[str, str]:
        facts = [json.loads(docker("inspect", container))[0] for container in stack.left()["container"]]
        return {each["Name"]: each["State"]["Health"]["Status"] for each in facts if "Health" in each["State"]}

    deadline = time.monotonic() + 120
    while set(states().values()) != {"healthy"} and time.monotonic() < deadline:
        time.sleep(1)
    assert set(states().values()) == {"healthy"}
    assert len(states()) == 4  # the SuperLink and three nodes


def test_a_node_that_is_killed_is_started_again_and_comes_back(stack: Stack):
    """Docker's restart policy, and Flower's minute in which a killed node's key is still taken to be in use."""
    container = stack.container("node-1")
    before = inspected(container)
    (node,) = node_ids(container, before["State"]["StartedAt"])
    os.kill(before["State"]["Pid"], signal.SIGKILL)

    def started_again() -> bool:
        now = inspected(container)
        return (
            now["RestartCount"] > before["RestartCount"] and now["State"]["StartedAt"] != before["State"]["StartedAt"]
        )

    wait_for(started_again, 60, container)
    # What the killed process said does not count, nor that the server takes it to be online for another minute.
    again = inspected(container)["State"]["StartedAt"]
    wait_for(lambda: node_ids(container, again), 180, container)
    # With a key it is the node that it was; without one it is another, and the old one is said to be offline.
    assert (node_ids(container, again) == [node]) is stack.tls
    if stack.tls:
        assert "3 of 3 nodes are connected" in stack.make("control", "ARGS=nodes compose-tls --wait 3")


def test_a_nodes_runtime_api_is_there_for_its_own_app_alone(stack: Stack):
    """Whoever reaches it may take the node's work, so from the network of all devices nobody does."""
    reached = {}
    for target in (*(f"node-{i}:9094" for i in range(3)), "gateway:8443" if stack.tls else "superlink:8000"):
        words = ["run", "--rm", "--network", f"{PROJECT}_devices", "--entrypoint", "python", f"{PROJECT}/node"]
        reached[target] = docker(*words, "-c", CONNECT, *target.split(":"), check=False).strip()
    assert list(reached.values()) == ["ConnectionRefusedError"] * 3 + ["open"], reached
    networks = inspected(stack.container("node-0"))["NetworkSettings"]["Networks"]
    assert set(networks) == {f"{PROJECT}_devices", f"{PROJECT}_node-0"}


MNIST = ROOT.parent / "shared" / "data" / "mnist"


def test_an_app_with_512_mb_trains_mnist_from_a_folder_of_images(stack: Stack, tmp_path: Path):
    if stack.tls:
        pytest.skip("once is enough")
    if not MNIST.is_dir():
        pytest.skip("needs MNIST in ../shared/data, which is not there")
    from PIL import Image

    images, labels = _mnist(6000)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "images" / str(label) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    # All of it counts here, pages of files too, and there is no swap: the kernel would kill what takes more.
    printed = docker(
        *("run", "--rm", "--memory", "512m", "--memory-swap", "512m", "--network", "none", "--entrypoint", "gfpl"),
        *("--volume", f"{tmp_path}/images:/images:ro", "--tmpfs", "/app/data:mode=1777", "gfpl-test/app", "rehearse"),
        *("-c", "dataset=folder:/images", "-c", "image-size=28", "--data-dir", "/app/data"),
    )
    print(printed)
    trained = int(printed.partition(" images")[0])
    assert 4800 <= trained <= 4810  # of every class a fifth, rounded down, is for testing
    peak = int(printed.partition("peak of memory ")[2].split()[0])
    assert peak < 512


def _mnist(count: int):
    """Read the first MNIST images where they lie, in PNG sheets or as they were published."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(MNIST.parent / "unpack.py"), folder], check=True, capture_output=True)
        tensors = load_file(Path(folder) / "mnist.safetensors")
    return tensors["train_images"][:count, 0].numpy(), tensors["train_labels"][:count].tolist()
