"""What messages cost a device: messages, bytes and wall time a site, measured on Flower's deployment engine.

    python -m benchmarks.messages --data-dir data --algorithms gfpl,local

The setting is the paper's for MNIST: 20 sites of 2 to 5 classes and about 100 samples a class, T = 80 rounds; GFPL
exchanges after round 30 and then every 5. Every node is a SuperNode with its SuperExec, TLS and a key, on this
machine. A device has a processor to itself, so only a few of the sites get a node here and the others stay away: what
is measured is a site's own time, not that of twenty on a few shared cores.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.deployment import Deployment

SITES = 20
SETTING: dict[str, object] = {
    "dataset": "mnist",
    "num-sites": SITES,
    "rounds": 80,
    "node-deadline": 3,
    "quorum": 0.05,
}


def measure(deployment: Deployment, algorithm: str, options: dict[str, object]) -> dict[str, float]:
    """Run an algorithm and return what it cost a site.

    Raises:
        RuntimeError: the run failed; with the last line that it printed.
    """
    run = deployment.run(algorithm, SETTING | options | {"algorithm": algorithm})
    printed, _ = run.communicate()
    folder = deployment.runs / algorithm
    if run.returncode:
        raise RuntimeError(f"{algorithm}: {printed.strip().splitlines()[-1]}")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    answered = [site for line in lines for site in line["sites"] if site["status"] == "ok"]
    names = {site["site"] for site in answered}
    own = sum(sum(site["seconds"].values()) for site in answered)
    return {
        "sites": len(names),
        "messages": 2 * len(answered) / len(names),
        "up": sum(site["bytes_up"] for site in answered) / len(names),
        "down": sum(site["bytes_down"] for site in answered) / len(names),
        "seconds": sum(line["seconds"]["sites"] for line in lines),
        "computing": own / len(names),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.messages", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="where mnist.safetensors lies")
    parser.add_argument("--algorithms", default="gfpl,local", help="names, comma-separated")
    parser.add_argument("--nodes", type=int, default=2, help="sites that get a node here")
    parser.add_argument("-c", action="append", default=[], metavar="KEY=VALUE", help="another option of the runs")
    given = parser.parse_args(words)
    options: dict[str, object] = dict(word.split("=", 1) for word in given.c)
    print("| algorithm | messages a site | up, a site | down, a site | wall time a site | of it computing |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="gfpl-") as folder, Deployment(Path(folder) / "d") as deployment:
        for site in range(given.nodes):
            data, state = str(given.data_dir.resolve()), str(deployment.folder / f"state-{site}")
            deployment.node(f"node-{site}", {"partition-id": site, "data-dir": data, "state-dir": state})
        deployment.connected(given.nodes)
        for algorithm in given.algorithms.split(","):
            try:
                cost = measure(deployment, algorithm, options)
            except (RuntimeError, subprocess.SubprocessError) as error:
                print(f"| {algorithm} | {error} | | | | |")
                continue
            print(
                f"| {algorithm} | {cost['messages']:.0f} | {cost['up'] / 1e3:.1f} kB | {cost['down'] / 1e3:.1f} kB "
                f"| {cost['seconds']:.0f} s | {cost['computing']:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
