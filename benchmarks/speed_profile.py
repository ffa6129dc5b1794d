"""Where the time of a visit goes: by phase, and in training by operator."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed_text import PHASES
from benchmarks.speed_training import CPU, MNIST, sites_of
from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Visit
from gfpl_flwr.flower.client import Ask, answer
from gfpl_flwr.flower.site_setup import open_dataset
from gfpl_flwr.flower.wire import Order, decode_reply, encode_order
from gfpl_flwr.training import Descent

COHORT = 10


def phases(data_dir: Path, *, repeats: int = 5) -> dict[str, float]:
    """Return the milliseconds of each phase of a visit, a site, of a cohort in one process on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        schedule = {"rounds": 2, "gfpl.first-exchange": 1, "gfpl.exchange-every": 1}
        state_dir = Path(folder) / "state"
        flat = MNIST | schedule | {"data-dir": str(data_dir), "state-dir": str(state_dir), "device": "cpu"}
        config, algorithm = parse_run(flat)
        algorithm = algorithm.resolve(config, open_dataset(config, data_dir).num_classes)

        def visited(visit: Visit, down: dict[str, torch.Tensor]) -> list[Any]:
            content = encode_order(Order("run", visit, down))
            asks = [Ask(content, flat, {"partition-id": site, "num-partitions": 20}) for site in range(COHORT)]
            outcomes = answer(asks)
            if failed := [outcome for outcome in outcomes if isinstance(outcome, str)]:
                raise RuntimeError(failed[0])
            return [decode_reply(outcome).reply for outcome in outcomes if not isinstance(outcome, str)]

        first, second, _ = algorithm.visits(config)
        down = algorithm.downlink(algorithm.aggregate({}, visited(first, {})))
        found: dict[str, list[float]] = {phase: [] for phase in PHASES}
        after_first = Path(folder) / "after-first"
        shutil.copytree(state_dir, after_first)
        for _ in range(repeats):
            # A site that has done a visit answers it from its disk.
            shutil.rmtree(state_dir)
            shutil.copytree(after_first, state_dir)
            start = time.perf_counter()
            replies = visited(second, down)
            whole = time.perf_counter() - start
            spent = {phase: sum(reply.seconds[phase] for reply in replies) for phase in PHASES if phase != "rest"}
            for phase, seconds in (spent | {"rest": whole - sum(spent.values())}).items():
                found[phase].append(1000 * seconds / COHORT)
    return {phase: statistics.median(values) for phase, values in found.items()}


def operators(data_dir: Path) -> dict[str, float]:
    """Return the share of each operator in the time that training a cohort takes, the largest first."""
    torch.set_num_threads(1)
    algorithm, sites = sites_of(MNIST, data_dir)
    works = [Descent(site, "train", site.train, algorithm.loss, 1, 1) for site in sites[:COHORT]]
    Descent.do(works)
    return operator_shares(lambda: Descent.do(works), CPU)


def operator_shares(run: Callable[[], object], device: torch.device, *, most: int = 12) -> dict[str, float]:
    """Return the share of each operator in the time that a device is busy with some work, the largest first."""
    on_card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]) as recorded:
        run()
    # The time of a kernel stands with the operator that launched it and, on a card, with the kernel once more.
    spent = {
        event.key: event.self_device_time_total if on_card else event.self_cpu_time_total
        for event in recorded.key_averages()
        if event.device_type.name == "CPU"
    }
    whole = sum(spent.values())
    largest = sorted(spent, key=lambda name: -spent[name])[:most]
    return {name: spent[name] / whole for name in largest}
