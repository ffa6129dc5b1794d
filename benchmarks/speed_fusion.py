"""Fusion of 2,000 components against a double loop in NumPy, and of the stream of 10,000 sites."""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.pairs import CLOCKS, Pair
from gfpl_flwr.core import GaussianPrototypes
from gfpl_flwr.core.fusion import FirstFit, Rule, fuse
from gfpl_flwr.core.fusion_search import kernels

ROWS = 2_000
DIM = 512
THRESHOLD = 0.05
"""Nats a coordinate. Rows of one mode are about 0.02 apart, rows of two about 0.4."""
Regime = Literal["one mode", "twenty modes", "nothing merges"]
_MODES: dict[Regime, int] = {"one mode": 1, "twenty modes": 20, "nothing merges": 0}
_TIMED_PAIRS = 20_000


@dataclass(frozen=True)
class Scale:
    """What a stream of sites cost.

    Attributes:
        regime: how many components of a class belong together.
        rows: components that came, over all sites.
        components: what is left.
        seconds: CPU time of fusion alone.
        total_seconds: the same with drawing the sites' components.
        peak_mib: largest resident memory of the process, with the interpreter and torch.
        start_mib: resident memory before the first site.
    """

    regime: str
    rows: int
    components: int
    seconds: float
    total_seconds: float
    peak_mib: float
    start_mib: float


def draw(rows: int, modes: int, *, dim: int = DIM, seed: int = 0, centres: int = 0) -> GaussianPrototypes:
    """Draw float32 components of one class that scatter around ``modes`` centres; 0: each has its own.

    The scatter is what two sites would see that fit a component to some 50 samples of one distribution: 0.15
    standard deviations of the mean, and variances within a factor of 2.

    Args:
        rows: N.
        modes: centres, a standard deviation apart in each coordinate.
        dim: D.
        seed: of the scatter.
        centres: seed of the centres, the same for all sites.
    """
    generator = torch.Generator().manual_seed(seed)
    if modes:
        middle = torch.randn(modes, dim, generator=torch.Generator().manual_seed(centres))
        means = middle[torch.arange(rows) % modes] + 0.15 * torch.randn(rows, dim, generator=generator)
    else:
        means = torch.randn(rows, dim, generator=generator)
    variances = 0.5 + 0.5 * torch.rand(rows, dim, generator=generator)
    return GaussianPrototypes(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 50.0), means, variances)


def double_loop(bank: GaussianPrototypes, pairs: int) -> float:
    """Compute the distances of the first pairs of rows, one at a time: the plain way to start Algorithm 1."""
    means, variances = bank.means.double().numpy(), bank.variances.double().numpy()
    total, done = 0.0, 0
    for i in range(len(means)):
        for j in range(i + 1, len(means)):
            if done == pairs:
                return total
            both = variances[i] + variances[j]
            gap = means[i] - means[j]
            ratio = both / (2 * np.sqrt(variances[i] * variances[j]))
            total += float((gap * gap / (4 * both)).sum() + 0.5 * np.log(ratio).sum())
            done += 1
    return total


def pairs(repeats: int = 3) -> Iterator[Pair]:
    """Yield fusion against the double loop, where components merge and where none do.

    The double loop only computes the distances, once, of the N (N - 1) / 2 pairs; it merges nothing. Its time is
    extrapolated from its first 20,000 pairs, the same in every repeat.
    """
    plan: tuple[tuple[Regime, Rule, float | None], ...] = (
        ("one mode", "first_fit", 300),
        ("twenty modes", "first_fit", 300),
        ("nothing merges", "closest_pair", 10),
        ("one mode", "closest_pair", None),
        ("twenty modes", "closest_pair", None),
        ("nothing merges", "first_fit", None),
    )
    for regime, rule, goal in plan:
        bank = draw(ROWS, _MODES[regime])
        run = functools.partial(fuse, bank, threshold=THRESHOLD, rule=rule)
        left = len(run())  # this also loads the compiled loops
        ours, theirs = [], []
        for _ in range(repeats):
            start = CLOCKS["cpu"]()
            run()
            ours.append(CLOCKS["cpu"]() - start)
            start = CLOCKS["cpu"]()
            double_loop(bank, _TIMED_PAIRS)
            theirs.append((CLOCKS["cpu"]() - start) * (ROWS * (ROWS - 1) / 2) / _TIMED_PAIRS)
        yield Pair(
            "fusion",
            f"one class, {ROWS} components, D = {DIM}, {regime}, {rule}: {left} left",
            "gfpl_flwr fuse",
            "NumPy double loop over all pairs",
            ours,
            theirs,
            "cpu",
            goal,
            f"double loop extrapolated from {_TIMED_PAIRS:,} of {ROWS * (ROWS - 1) // 2:,} pairs; it computes the "
            f"distances and merges nothing; compiled loops: {'yes' if kernels() else 'no'}",
        )


def scale_check(
    regime: Regime = "twenty modes", *, sites: int = 10_000, classes: int = 10, components: int = 2, dim: int = DIM
) -> Scale:
    """Measure ``FirstFit`` over a stream of sites in a process of its own.

    Args:
        regime: how many modes the components of a class come from.
        sites: each is drawn, added and dropped.
        classes: of every site.
        components: a class of a site.
        dim: D.
    """
    arguments = json.dumps([regime, sites, classes, components, dim])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed_fusion", arguments], capture_output=True, text=True, check=True
    )
    return Scale(**json.loads(done.stdout))


def stream(regime: Regime, sites: int, classes: int, components: int, dim: int) -> dict[str, Any]:
    """Fuse a stream of sites in this process; return the fields of :class:`Scale`."""
    torch.set_num_threads(1)
    before, began, spent = _resident_mib(), time.process_time(), 0.0
    fusion = FirstFit(threshold=THRESHOLD)
    labels = torch.arange(classes).repeat_interleave(components)
    modes = _MODES[regime]
    centres = torch.randn(classes, max(modes, 1), dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for _ in range(sites):
        means = torch.randn(len(labels), dim, generator=generator)
        if modes:
            mode = torch.randint(modes, (len(labels),), generator=generator)
            means = means.mul_(0.15).add_(centres[labels, mode])
        variances = torch.rand(len(labels), dim, generator=generator).mul_(0.5).add_(0.5)
        bank = GaussianPrototypes(labels, torch.full((len(labels),), 50.0), means, variances)
        start = time.process_time()
        fusion.add(bank)
        spent += time.process_time() - start
    start = time.process_time()
    left = len(fusion.result())
    spent += time.process_time() - start
    return {
        "regime": regime,
        "rows": sites * len(labels),
        "components": left,
        "seconds": spent,
        "total_seconds": time.process_time() - began,
        "peak_mib": _resident_mib(peak=True),
        "start_mib": before,
    }


def _resident_mib(*, peak: bool = False) -> float:
    key = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as status:
        kib = next(line.split()[1] for line in status if line.startswith(key))
    return int(kib) / 1024


if __name__ == "__main__":
    json.dump(stream(*json.loads(sys.argv[1])), sys.stdout)
