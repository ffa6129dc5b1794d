"""Training on a GPU: a cohort of sites as one network against one site after the other, and how busy the card is."""

import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pairs import Way, compare
from benchmarks.speed_profile import operator_shares
from benchmarks.speed_training import MNIST, descend, sites_of
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.training import Descent, Site

COHORT = 20
WORKS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("CNN, batch 4, MNIST", MNIST, 10),
    ("ResNet18, batch 32, CIFAR-10", {"dataset": "cifar10", "num-sites": COHORT}, 3),
)
"""What is trained, its options, and how many times as fast the cohort was to be."""


def found(
    data_dir: Path, device: torch.device, *, works: tuple[tuple[str, dict[str, Any], float], ...] = WORKS
) -> dict[str, Any]:
    """Return the pairs, the rates of the cohorts, and the operators that the time of the first cohort goes into.

    Args:
        data_dir: folder with the data sets.
        device: where it is measured; wall time, after all that was asked of the device is done.
        works: as :data:`WORKS`.
    """
    torch.set_num_threads(1)
    highest = peak(device, 8192 if device.type == "cuda" else 512)
    pairs, rates = [], []
    operators: dict[str, float] = {}
    for work, options, goal in works:
        algorithm, sites = sites_of(options, data_dir, device)
        epochs = [Descent(site, "train", site.train, algorithm.loss, 1, 1) for site in sites]
        images = sum(len(site.train) for site in sites)

        def done(cohort: int, epochs: list[Descent] = epochs) -> None:
            descend(epochs, cohort)
            _wait(device)

        together = functools.partial(done, len(sites))
        pair = compare(
            "gpu",
            f"{work}, {len(sites)} sites, an epoch of {images:,} samples",
            Way(f"one cohort of {len(sites)}", together),
            Way("one site after the other", functools.partial(done, 1)),
            clock="wall",
            goal=goal,
        )
        pairs.append(pair)
        rate = images / statistics.median(pair.our_seconds)
        busy = rate * operations(algorithm, sites[0]) / highest
        rates.append({"work": work, "samples_a_second": rate, "share_of_peak": busy})
        operators = operators or operator_shares(together, device)
    return {
        "card": _name(device),
        "peak": highest,
        "cohort": len(sites),
        "pairs": pairs,
        "rates": rates,
        "operators": operators,
    }


def peak(device: torch.device, size: int, *, products: int = 10, repeats: int = 6) -> float:
    """Return the floating-point operations a second of a product of two matrices, as precise as convolutions are."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    seconds = []
    try:
        for _ in range(repeats):
            _wait(device)
            start = time.perf_counter()
            for _ in range(products):
                torch.mm(left, right)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * size**3 * products / statistics.median(seconds[1:])


def operations(algorithm: GFPL, site: Site) -> float:
    """Return the floating-point operations of training, a sample: those of a site alone, without any of a stack."""
    # Such a site is spared the extra group of a stack, which the counter would take for as many as there are groups.
    own = dataclasses.replace(site, config=dataclasses.replace(site.config, partition="own"))
    with FlopCounterMode(display=False) as counter:
        Descent.do([Descent(own, "train", own.train, algorithm.loss, 1, 1)])
    return float(counter.get_total_flops()) / len(site.train)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
