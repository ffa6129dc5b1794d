"""Cost as sites grow, with what the engine itself costs; and the engine's messages against those of Flower's Ray.

python -m benchmarks.speed_scale ray SITES TIMES   # prints the seconds of exchanges that ask for no work
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.pairs import Pair
from benchmarks.speed_peers import ROOT
from gfpl_flwr.flower import inprocess
from gfpl_flwr.flower.client import Ask
from gfpl_flwr.flower.tensors import encode_tensors

SITES = (20, 100, 500, 2_000)
SMALL: dict[str, Any] = {
    "dataset": "mnist", "partition": "n-way-k-shot", "ways": 2, "ways-spread": 0, "shots": 13, "test-shots": 2,
    "gfpl.first-exchange": 1, "gfpl.exchange-every": 1,
}  # fmt: skip
COMPONENTS, DIM = 6, 50
OF_MANY = 7
_PAGE = 1024


@dataclass(frozen=True)
class Scale:
    """What rounds of many sites cost.

    Attributes:
        sites: how many.
        rounds: wall seconds of each whole round.
        working: of each of these rounds, until all sites had answered.
        peak_mib: largest memory of the process and its workers together, each shared page counted once.
        components: that came from the sites in a round.
    """

    sites: int
    rounds: list[float]
    working: list[float]
    peak_mib: float
    components: int


def cost_of(sites: int, data_dir: Path, *, rounds: int = 2) -> Scale:
    """Run small sites in a process of their own: 26 images of two classes each, and 1,000 pseudo-features.

    The first visit, which retrains nothing, and the last, which only retrains, are no whole rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = SMALL | {"num-sites": sites, "rounds": rounds, "name": "run", "output-dir": folder, "device": "cpu"}
        flat = json.dumps(options | {"data-dir": str(data_dir.resolve())})
        command = [sys.executable, "-m", "benchmarks.speed_round", flat]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        peak = 0.0
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                peak = max(peak, _tree_mib(process.pid))
                time.sleep(0.5)
        if process.returncode:
            raise RuntimeError(f"the run of {sites} sites ended with status {process.returncode}")
        lines = [json.loads(line) for line in (Path(folder, "run", "rounds.jsonl")).read_text().splitlines()]
    whole = lines[1:-1]
    return Scale(
        sites,
        [line["seconds"]["total"] for line in whole],
        [line["seconds"]["sites"] for line in whole],
        peak,
        whole[-1]["fusion"]["components_in"],
    )


def _tree_mib(pid: int) -> float:
    """Return the memory of a process and its children: private pages, and each one's share of common ones."""
    total, waiting = 0.0, [pid]
    while waiting:
        process = Path("/proc", str(waiting.pop()))
        try:
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / _PAGE
    return total


def sites(data_dir: Path, counts: Iterable[int] = SITES) -> list[dict[str, Any]]:
    """Return the cost of each number of sites; few sites do more rounds."""
    return [asdict(cost_of(count, data_dir, rounds=5 if count < 500 else 2)) for count in counts]


def bank() -> ArrayRecord:
    """Return the arrays of a small site's prototypes."""
    rows = {"means": torch.rand(COMPONENTS, DIM), "variances": torch.rand(COMPONENTS, DIM)}
    labels = {"labels": torch.arange(COMPONENTS) // 2, "counts": torch.full((COMPONENTS,), 50.0)}
    return encode_tensors(labels | rows)


def echoed(content: RecordDict) -> RecordDict:
    """Return a reply that took no work: the arrays that came."""
    return RecordDict({"arrays": content.array_records["arrays"]})


def echo_all(asks: Sequence[Ask]) -> list[RecordDict | str]:
    """Stand in for the visits of a cohort."""
    return [echoed(ask.content) for ask in asks]


def exchanges(grid: Grid, times: int) -> list[float]:
    """Send a message to every node and wait for all replies, some times; return the wall seconds of each."""
    seconds = []
    for number in range(times):
        content = RecordDict({"arrays": bank()})
        start = time.perf_counter()
        messages = [Message(content, node, MessageType.TRAIN, group_id=str(number)) for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        seconds.append(time.perf_counter() - start)
        if len(replies) != len(messages) or any(reply.has_error() for reply in replies):
            raise RuntimeError(f"{len(replies)} replies to {len(messages)} messages, or an error among them")
    return seconds


def over_in_process(sites: int, times: int) -> list[float]:
    """Exchange messages through the in-process engine, with two workers and its default cohorts."""
    vars(inprocess)["answer"] = echo_all  # this process does nothing else
    nodes = [{"partition-id": site} for site in range(sites)]
    with inprocess.InProcessGrid(nodes, {}, cohort=10, workers=2) as grid:
        return exchanges(grid, times)


def over_ray(sites: int, times: int) -> list[float]:
    """Exchange messages through Flower's simulation engine, with an actor a core."""
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    seconds: list[float] = []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return Message(echoed(message.content), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < sites:
            time.sleep(0.1)
        seconds.extend(exchanges(grid, times))

    run_simulation(server, client, sites, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return seconds


def messages(counts: Iterable[int] = (100, 1_000), *, times: int = 3) -> list[Pair]:
    """Return the engine's messages against Ray's. The first exchange, in which both start processes, is left out."""
    note = (
        "One engine after the other, not in turn. The in-process engine is so quick that each of its times is the "
        f"median of {OF_MANY} exchanges."
    )
    pairs = []
    for count in counts:
        seconds: dict[str, list[float]] = {}
        for engine, each in (("inprocess", OF_MANY), ("ray", 1)):
            command = [sys.executable, "-m", "benchmarks.speed_scale", engine, str(count), str(times * each + 1)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            taken = json.loads(done.stdout.splitlines()[-1])[1:]
            seconds[engine] = [statistics.median(taken[start::times]) for start in range(times)]
        work = f"{count:,} messages of 2.4 kB and their replies, in which a site does nothing"
        pairs.append(
            Pair(
                "messages",
                work,
                "in-process engine, 2 workers",
                "Flower's Ray backend, 2 actors",
                seconds["inprocess"],
                seconds["ray"],
                "wall",
                50,
                note,
            )
        )
    return pairs


def main() -> None:
    """Exchange messages; print the seconds."""
    engine, sites, times = sys.argv[1:]
    torch.set_num_threads(1)
    run = {"inprocess": over_in_process, "ray": over_ray}[engine]
    print(json.dumps(run(int(sites), int(times))))


if __name__ == "__main__":
    main()
