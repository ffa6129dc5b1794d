"""Rounds of other programs on this project's split of MNIST, each in a process of its own."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.data.datasets import normalisation
from gfpl_flwr.flower.site_setup import open_dataset, partition_of

ROOT = Path(__file__).parents[1]
SITES = 20
FEDPROTO = [
    "--mode", "task_heter", "--dataset", "mnist", "--num_classes", "10", "--num_users", str(SITES), "--ways", "3",
    "--shots", "100", "--stdev", "2", "--train_shots_max", "110", "--ld", "1",
]  # fmt: skip
PFLIB = [
    "-data",
    "MNIST",
    "-m",
    "CNN",
    "-algo",
    "FedProto",
    "-nc",
    str(SITES),
    "-lbs",
    "4",
    "-lr",
    "0.01",
    "-dev",
    "cpu",
]
NAMES = {"fedproto": "FedProto's program", "pflib": "PFLlib's FedProto, same network"}
_ROUND_OF_PFLIB = re.compile(r"-{40,} ([\d.]+)$")


@dataclass(frozen=True)
class Passed:
    """How long a program took.

    Attributes:
        setup: wall seconds from its start to its first round.
        rounds: wall seconds of each round.
        after: wall seconds from the last round to its end.
        threads: of torch, in each of its processes.
    """

    setup: float
    rounds: list[float]
    after: float
    threads: int = 1

    @property
    def round(self) -> float:
        """Median of the rounds but the first, in which there are no prototypes yet."""
        return statistics.median(self.rounds[1:])

    def whole(self, rounds: int) -> float:
        """Return the time of so many rounds, extrapolated from those there are."""
        return self.setup + self.rounds[0] + (rounds - 1) * self.round + self.after


def stamped(command: Sequence[str], folder: Path, *, threads: int = 1) -> list[tuple[float, str]]:
    """Run a command; return the seconds since its start and the text of every line, and the end as an empty line.

    Raises:
        RuntimeError: it failed; with the last of what it printed.
    """
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": str(ROOT)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a peer's checkout stays as it is
    begun = time.perf_counter()
    lines = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            lines.append((time.perf_counter() - begun, line.rstrip()))
    if process.returncode:
        told = "\n".join(line for _, line in lines[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{told}")
    return [*lines, (time.perf_counter() - begun, "")]


def measure(peer: str, checkout: Path, folder: Path, *, rounds: int = 3, threads: int = 1) -> Passed:
    """Run a peer's program for a few rounds.

    Args:
        peer: a key of :data:`NAMES`.
        checkout: folder of its code; nothing is written there.
        folder: made by :func:`write_split`.
        rounds: at least 2.
        threads: of torch.
    """
    # PFLlib counts its rounds from 0 and does one more than it is told.
    own = [*FEDPROTO, "--rounds", str(rounds), "--data_dir", f"{folder.resolve()}/"]
    own = own if peer == "fedproto" else [*PFLIB, "-gr", str(rounds - 1)]
    command = [
        sys.executable,
        "-u",
        "-m",
        "benchmarks.peer",
        peer,
        str(checkout.resolve()),
        str(folder.resolve()),
        *own,
    ]
    lines = stamped(command, folder / "work", threads=threads)
    return replace(_fedproto(lines) if peer == "fedproto" else _pflib(lines), threads=threads)


def _fedproto(lines: list[tuple[float, str]]) -> Passed:
    starts = [at for at, line in lines if "Global Training Round" in line]
    tested = next(at for at, line in lines if "Global Test Acc" in line)
    edges = [*starts, tested]
    return Passed(starts[0], np.diff(edges).tolist(), lines[-1][0] - tested)


def _pflib(lines: list[tuple[float, str]]) -> Passed:
    starts = [at for at, line in lines if "Round number" in line]
    ends = [(at, float(match[1])) for at, line in lines if (match := _ROUND_OF_PFLIB.search(line))]
    return Passed(starts[0], [seconds for _, seconds in ends], lines[-1][0] - ends[-1][0])


def write_split(data_dir: Path, folder: Path) -> None:
    """Write MNIST and this project's split of it in the forms that the peers read.

    torchvision's raw files and the rows of each user for FedProto, the images of each client for PFLlib.
    """
    config, _ = parse_run({"dataset": "mnist", "num-sites": SITES, "data-dir": str(data_dir)})
    dataset = open_dataset(config, data_dir)
    shares = partition_of(config, dataset, SITES)
    raw = folder / "mnist" / "MNIST" / "raw"
    for place in (
        raw,
        folder / "work",
        folder / "dataset" / "MNIST" / "train",
        folder / "dataset" / "MNIST" / "test",
    ):
        place.mkdir(parents=True)
    ((mean,), (std,)) = normalisation("mnist")
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = getattr(dataset, f"{split}_images").squeeze(1).numpy()
        labels = getattr(dataset, f"{split}_labels").numpy()
        _write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        _write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))
        for site, share in enumerate(shares):
            rows = getattr(share, split)
            pixels = (images[rows, None].astype(np.float32) / 255 - mean) / std
            with (folder / "dataset" / "MNIST" / split / f"{site}.npz").open("wb") as file:
                np.savez_compressed(file, data=np.array({"x": pixels, "y": labels[rows]}, dtype=object))
    told = {split: [getattr(share, split).tolist() for share in shares] for split in ("train", "test")}
    classes = [np.unique(dataset.train_labels.numpy()[share.train]).tolist() for share in shares]
    (folder / "split.json").write_text(json.dumps(told | {"classes": classes}))


def _write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.tobytes())
