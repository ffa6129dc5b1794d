"""Whole GFPL rounds and whole runs through the in-process engine, side by side with other programs.

A round is everything between two exchanges one round apart: retraining on the prototypes handed down, a test, an
epoch of training at every site, a test, mixtures, messages, fusion, and the files of the run and of every site.
"""

import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.pairs import Pair
from benchmarks.speed_peers import NAMES, SITES, Passed, measure, stamped, write_split

MNIST: dict[str, Any] = {"dataset": "mnist", "num-sites": SITES}
PAPER: dict[str, Any] = {"rounds": 80, "gfpl.first-exchange": 30, "gfpl.exchange-every": 5}
CIFAR: dict[str, Any] = {
    "dataset": "cifar10", "num-sites": 4, "ways": 3, "ways-spread": 0, "shots": 40, "test-shots": 5, "cohort": 1,
}  # fmt: skip
OURS, ONE, TWO_THREADS = "gfpl_flwr, 2 worker processes", "gfpl_flwr, 1 process", "gfpl_flwr, 1 process, 2 threads"
GOALS, COMPILED = {"fedproto": 6, "pflib": 7}, 8
Checkouts = dict[str, Path]


def every_round(rounds: int) -> dict[str, Any]:
    """Return the options with which each of some rounds ends in an exchange."""
    return {"rounds": rounds, "gfpl.first-exchange": 1, "gfpl.exchange-every": 1}


def ours(data_dir: Path, flat: dict[str, Any]) -> Passed:
    """Run GFPL in a process of its own; its rounds are the visits that train and are done.

    With :func:`every_round` the first visit retrains nothing; :attr:`Passed.round` leaves it out. The last visit,
    which only retrains, counts as what comes after the rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = flat | {"name": "run", "output-dir": folder, "data-dir": str(data_dir.resolve()), "device": "cpu"}
        command = [sys.executable, "-u", "-m", "benchmarks.speed_round", json.dumps(options)]
        lines = stamped(command, Path(folder))
    began = next(at for at, line in lines if line == "began")
    edges = [began, *(at for at, line in lines if line == "visit done")]
    visits = [end - start for start, end in itertools.pairwise(edges)]
    return Passed(began, visits[:-1], visits[-1] + lines[-1][0] - edges[-1])


def in_turn(data_dir: Path, checkouts: Checkouts, *, turns: int = 3, rounds: int = 5) -> dict[str, list[Passed]]:
    """Run this project with two worker processes and with one, and each peer with 1 and 2 threads, in turn.

    Args:
        data_dir: with MNIST.
        checkouts: peer, a key of :data:`NAMES`, to the folder of its code.
        turns: how often each is run.
        rounds: of this project in a run; a peer does three.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "split")
        write_split(data_dir, folder)
        flat = MNIST | every_round(rounds)
        ways: dict[str, Callable[[], Passed]] = {
            OURS: functools.partial(ours, data_dir, flat),
            ONE: functools.partial(ours, data_dir, flat | {"workers": 1}),
        }
        for peer, checkout in checkouts.items():
            for threads in (1, 2):
                named = f"{NAMES[peer]}, {threads} thread{'s' * (threads > 1)}"
                ways[named] = functools.partial(measure, peer, checkout, folder, threads=threads)
        passed: dict[str, list[Passed]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, run in ways.items():
                passed[way].append(run())
    return passed


def pairs(passed: dict[str, list[Passed]]) -> Iterator[Pair]:
    """Yield a round of this project's against the others; the median of a run's rounds but the first counts."""
    seconds = {way: [turn.round for turn in turns] for way, turns in passed.items()}
    work = f"a GFPL round of {SITES} MNIST sites"
    yield Pair("round", work, OURS, ONE, seconds[OURS], seconds[ONE], "wall")
    for way, taken in seconds.items():
        if way in (OURS, ONE):
            continue
        peer = next(peer for peer, name in NAMES.items() if way.startswith(name))
        goal = GOALS[peer] if way.endswith("1 thread") else None
        note = f"compiled, which nothing here is, it was to be {COMPILED}" if goal == GOALS["fedproto"] else ""
        yield Pair("round", work, OURS, way, seconds[OURS], taken, "wall", goal, note)
        yield Pair("round", work, ONE, way, seconds[ONE], taken, "wall")


def whole_runs(data_dir: Path, passed: dict[str, list[Passed]]) -> list[dict[str, Any]]:
    """Return the seconds of the paper's setting: this project's run in full, a peer's from the rounds that it did."""
    passes = {OURS: [ours(data_dir, MNIST | PAPER)]}
    passes |= {way: turns for way, turns in passed.items() if way not in (OURS, ONE)}
    told = []
    for way, turns in passes.items():
        whole = [
            turn.setup + sum(turn.rounds) + turn.after if way == OURS else turn.whole(PAPER["rounds"])
            for turn in turns
        ]
        parts = {part: [getattr(turn, part) for turn in turns] for part in ("setup", "round", "after")}
        if way == OURS:
            parts = {"setup": parts["setup"]}  # its visits are of many rounds
        told.append({"program": way, "seconds": whole, **parts})
    return told


def resnet18(data_dir: Path, *, turns: int = 2) -> Iterator[Pair]:
    """Yield a round of ResNet18 on CIFAR-10 with two worker processes against one with a thread, and with two."""
    ways = {OURS: {"workers": 2}, ONE: {"workers": 1}, TWO_THREADS: {"workers": 1, "torch-threads": 2}}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, options in ways.items():
            seconds[way].append(ours(data_dir, CIFAR | every_round(3) | options).round)
    work = f"a GFPL round of {CIFAR['num-sites']} CIFAR-10 sites, ResNet18, batch 32, 120 samples a site"
    yield Pair("round", work, OURS, ONE, seconds[OURS], seconds[ONE], "wall", 1.7)
    yield Pair("round", work, OURS, TWO_THREADS, seconds[OURS], seconds[TWO_THREADS], "wall")


def main() -> None:
    """Make the run of the options in the argument; print a line when it begins and one after every visit."""
    from gfpl_flwr.flower.inprocess import run_in_process
    from gfpl_flwr.flower.progress import Progress

    def tell(progress: Progress) -> None:
        if progress.done:
            print("visit done")

    flat = json.loads(sys.argv[1])
    print("began")
    run_in_process(flat, on_progress=tell)


if __name__ == "__main__":
    main()
