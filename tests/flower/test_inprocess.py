"""The in-process engine: cohorts, worker processes, and that neither changes a result."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from gfpl_flwr.algorithms import ALGORITHMS
from gfpl_flwr.algorithms.base import Visit
from gfpl_flwr.algorithms.local import Local
from gfpl_flwr.flower.inprocess import InProcessGrid, run_in_process
from gfpl_flwr.flower.wire import Order, encode_order


def results(path: Path) -> tuple[list, dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """What a run found: every accuracy and diagnostic, the server's state, every site's model."""
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    told = [
        [(site["site"], site["status"], site["accuracy"], site["diagnostics"]) for site in line["sites"]]
        for line in lines
    ]
    state = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    models = {
        f"{file.parent.name}/{file.name}": load_file(file) for file in path.parent.rglob("site-*/*.safetensors")
    }
    return told, state, models


def assert_same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    assert one.keys() == other.keys()
    for file, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[file][name]), (file, name)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_neither_cohorts_nor_workers_change_a_bit(small, tmp_path, name):
    found = []
    for number, (cohort, workers) in enumerate([(1, 1), (3, 1), (4, 1), (2, 2), (1, 3)]):
        folder = tmp_path / str(number)
        flat = small | {"algorithm": name, "num-sites": 5, "output-dir": str(folder)}
        found.append(results(run_in_process(flat | {"cohort": cohort, "workers": workers}).path))
    told, state, models = found[0]
    assert len(models) >= 5
    for other_told, other_state, other_models in found[1:]:
        assert other_told == told
        assert_same(other_state, state)
        assert_same(other_models, models)
    assert not multiprocessing.active_children()


def orders(grid: InProcessGrid, visit: Visit) -> list[Message]:
    return [Message(encode_order(Order("run", visit, {})), node, "train") for node in grid.get_node_ids()]


def nodes(count: int) -> list[dict[str, int]]:
    return [{"partition-id": site, "num-partitions": count} for site in range(count)]


def test_cohorts_are_of_about_equal_size_and_answered_one_by_one(small):
    grid = InProcessGrid(nodes(4), small, cohort=3)
    ids = set(grid.push_messages(orders(grid, Visit(1, 1, 1))))
    sizes = []
    while ids:
        replies = list(grid.pull_messages(ids))
        ids -= {reply.metadata.reply_to_message_id for reply in replies}
        sizes.append(len(replies))
    assert sizes == [2, 2]
    assert list(grid.pull_messages(set())) == []


def test_a_site_that_cannot_do_its_visit_fails_alone(small):
    broken = nodes(4)
    broken[2] = {"partition-id": 9}
    grid = InProcessGrid(broken, small, cohort=4)
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(orders(grid, Visit(1, 1, 1)))}
    assert [reply.has_error() for _, reply in sorted(replies.items())] == [False, False, True, False]
    assert "partition-id = 9" in replies[4].error.reason


def killed_in_its_first_visit(self, site, down, visit):
    """Local's half of a site, but the process of site 1 dies when it is asked for the first time."""
    mark = Path(site.config.output_dir) / "killed"
    if site.key == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield from ()
    raise RuntimeError("alive")


def test_a_worker_that_dies_costs_its_sites_one_visit(small, monkeypatch):
    monkeypatch.setattr(Local, "steps", killed_in_its_first_visit)
    flat = small | {"algorithm": "local"}
    with InProcessGrid(nodes(4), flat, cohort=2, workers=2) as grid:
        first = list(grid.send_and_receive(orders(grid, Visit(1, 1, 1)), timeout=60))
        reasons = {reply.error.reason for reply in first}
        assert any("a worker process of the in-process engine died" in reason for reason in reasons)
        second = list(grid.send_and_receive(orders(grid, Visit(2, 2, 2)), timeout=60))
        assert {reply.error.reason for reply in second} == {"RuntimeError: alive"}
    assert len(first) == len(second) == 4
    assert not multiprocessing.active_children()


def hanging(self, site, down, visit):
    time.sleep(600)
    yield from ()


def test_leaving_the_engine_ends_workers_that_are_busy(small, monkeypatch):
    monkeypatch.setattr(Local, "steps", hanging)
    start = time.monotonic()
    with InProcessGrid(nodes(2), small | {"algorithm": "local"}, cohort=1, workers=2) as grid:
        assert list(grid.send_and_receive(orders(grid, Visit(1, 1, 1)), timeout=0.5)) == []
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 60


AFTER_THREADS = """
import json, sys
import torch
from safetensors.torch import save_file
from gfpl_flwr.flower.inprocess import run_in_process

flat, path = json.loads(sys.argv[1]), sys.argv[2]
torch.set_num_threads(2)
torch.ones(1 << 22).sum()  # OpenMP's threads are started: a fork does not copy them
images = torch.randint(0, 256, (80_000, 1, 8, 8), dtype=torch.uint8)
labels = torch.arange(80_000) % 10
train = {"train_images": images, "train_labels": labels}
save_file(train | {"test_images": images[:1000].clone(), "test_labels": labels[:1000].clone()}, path)
run_in_process(flat)
"""


def test_workers_do_not_wait_for_the_threads_of_the_process_that_forked_them(small, tmp_path):
    # A data set so large that torch shares the check of its labels among threads.
    flat = small | {"dataset": "many", "data-dir": str(tmp_path), "algorithm": "local", "workers": 2, "rounds": 1}
    words = [sys.executable, "-c", AFTER_THREADS, json.dumps(flat), str(tmp_path / "many.safetensors")]
    done = subprocess.run(words, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


def test_ctrl_c_ends_the_workers_and_keeps_what_was_computed(small, monkeypatch):
    half = Local.steps

    def slow_second(self, site, down, visit):
        if visit.index == 2:
            time.sleep(600)
        return half(self, site, down, visit)

    monkeypatch.setattr(Local, "steps", slow_second)
    monkeypatch.setattr(Local, "visits", lambda self, config: [Visit(1, 1, 1), Visit(2, 2, 2)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    done = threading.Event()

    def interrupt() -> None:
        done.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_process(
                small | {"algorithm": "local", "cohort": 2, "workers": 2},
                on_progress=lambda progress: done.set() if progress.done else None,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()
    folder = Path(small["output-dir"]) / "run"
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert [json.loads(line)["visit"] for line in (folder / "rounds.jsonl").read_text().splitlines()] == [1]
