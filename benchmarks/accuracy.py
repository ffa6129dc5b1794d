"""Accuracy of Local, the dual classifier alone and GFPL on MNIST, over seeds: measured, summarised, tabulated.

    python -m benchmarks.accuracy run --data-dir data      # measures what benchmarks/results/mnist.json lacks
    python -m benchmarks.accuracy table                    # writes docs/results.md from that file

The setting is FedProto's: 20 sites, n-way k-shot with n = 3 +- 2 and k = 100, the 50-dimensional CNN, batch 4,
SGD with learning rate 0.01 and momentum 0.5, one local epoch a round, 30 rounds, own-class test.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gfpl_flwr.report import Run, read_run
from gfpl_flwr.report.formatting import human_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mnist.json"
REPORT = ROOT / "docs" / "results.md"
COMMAND = "python -m benchmarks.accuracy run --data-dir data"

SETTING: dict[str, Any] = {
    "dataset": "mnist",
    "num-sites": 20,
    "rounds": 30,
    "gfpl.first-exchange": 10,
    "gfpl.exchange-every": 5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "Local": {"algorithm": "local"},
    "DCS alone (no exchange)": {"gfpl.retraining": False},
    "GFPL": {},
    "GFPL, distance summed (paper preset)": {"preset": "paper"},
}
SEEDS = (1, 2, 3)


def measure(variant: str, seed: int, data_dir: str) -> dict[str, Any]:
    """Run one variant with one seed and return its summary."""
    import torch

    from gfpl_flwr.flower.inprocess import run_in_process

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        changes = SETTING | VARIANTS[variant] | {"seed": seed}
        flat = changes | {"name": "run", "data-dir": data_dir, "output-dir": folder, "device": "cpu"}
        path = run_in_process(flat | {"workers": 1}).path  # the runs themselves go side by side
        versions = json.loads((path / "config.json").read_text())["versions"]
        summary = summary_of(read_run(path))
    return {"variant": variant, "seed": seed, "changes": changes, "versions": versions, **summary}


def summary_of(run: Run) -> dict[str, Any]:
    """Return what the tables need of a run."""
    heads = {head: run.final_accuracy(head) for head in run.heads}
    totals = run.totals
    return {
        "accuracy": {head: {"mean": final.mean, "std": final.std} for head, final in heads.items()},
        "by_site": {str(site): value for site, value in heads[run.head].by_site.items()},
        "curve": [[point.round, round(point.mean, 5), round(point.std, 5)] for point in run.curve()],
        "before_retraining": [[point.round, round(point.mean, 5)] for point in run.after_training()],
        "messages": totals.messages,
        "bytes": {"up": totals.bytes_up, "down": totals.bytes_down},
        "array_bytes": {"up": totals.array_bytes_up, "down": totals.array_bytes_down},
        "merges": [[merge.components_in, merge.components_out] for merge in run.merges],
        "seconds": round(totals.seconds, 1),
    }


def run(data_dir: Path, jobs: int) -> None:
    """Measure every variant and seed that the results lack; each is saved as soon as it is done."""
    results = load()
    done = {(entry["variant"], entry["seed"]) for entry in results}
    missing = [(variant, seed) for seed in SEEDS for variant in VARIANTS if (variant, seed) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(measure, variant, seed, str(data_dir.resolve())) for variant, seed in missing]
        for number, future in enumerate(as_completed(futures), start=1):
            results.append(future.result())
            save(results)
            last = results[-1]
            accuracy = last["accuracy"]["classifier"]["mean"]
            print(f"{number}/{len(missing)}  {last['variant']}, seed {last['seed']}: {accuracy:.2%}", flush=True)


def load() -> list[dict[str, Any]]:
    """Return the summaries measured so far."""
    entries: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return entries


def save(results: list[dict[str, Any]]) -> None:
    """Write the summaries in the order of the tables, one run a line."""
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    ordered = sorted(results, key=lambda entry: (order[entry["variant"]], entry["seed"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in ordered) + "\n]\n")


def percent(values: list[float]) -> str:
    """Return mean and, over several seeds, sample standard deviation in percent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def of_variant(results: list[dict[str, Any]], variant: str) -> list[dict[str, Any]]:
    """Return the summaries of one variant, by seed."""
    return [entry for entry in results if entry["variant"] == variant]


def accuracy_rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of the accuracy table."""
    yield "| variant | classifier | ETF | sum | std over sites | messages | up | down | components in → out |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for variant in VARIANTS:
        entries = of_variant(results, variant)
        heads = [
            percent([entry["accuracy"][head]["mean"] for entry in entries]) if head in entries[0]["accuracy"] else "–"
            for head in ("classifier", "etf", "sum")
        ]
        spread = 100 * statistics.mean(entry["accuracy"]["classifier"]["std"] for entry in entries)
        up, down = (human_bytes(statistics.mean(entry["bytes"][way] for entry in entries)) for way in ("up", "down"))
        came, left = (sum(merge[side] for entry in entries for merge in entry["merges"]) for side in (0, 1))
        merged = f"{came} → {left}" if came else "–"
        messages = entries[0]["messages"]
        yield f"| {variant} | {' | '.join(heads)} | {spread:.2f} | {messages} | {up} | {down} | {merged} |"


def readme_rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the short table of the README: accuracy, difference to Local, messages and bytes a site."""
    local = {entry["seed"]: entry["accuracy"]["classifier"]["mean"] for entry in of_variant(results, "Local")}
    yield "| variant | accuracy % | to Local, points | messages a site | up, a site | down, a site |"
    yield "|---|---|---|---|---|---|"
    for variant in VARIANTS:
        entries = of_variant(results, variant)
        accuracy = percent([entry["accuracy"]["classifier"]["mean"] for entry in entries])
        gain = statistics.mean(
            100 * (entry["accuracy"]["classifier"]["mean"] - local[entry["seed"]]) for entry in entries
        )
        sites = SETTING["num-sites"]
        up, down = (
            human_bytes(statistics.mean(entry["bytes"][way] for entry in entries) / sites) for way in ("up", "down")
        )
        told = f"{gain:+.2f}" if variant != "Local" else "–"
        yield f"| {variant} | {accuracy} | {told} | {entries[0]['messages'] // sites} | {up} | {down} |"


def paired_rows(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of the differences to Local, seed by seed."""
    local = {entry["seed"]: entry["accuracy"]["classifier"]["mean"] for entry in of_variant(results, "Local")}
    yield "| variant | " + " | ".join(f"seed {seed}" for seed in local) + " | mean |"
    yield "|---|" + "---|" * (len(local) + 1)
    for variant in list(VARIANTS)[1:]:
        entries = of_variant(results, variant)
        gains = [100 * (entry["accuracy"]["classifier"]["mean"] - local[entry["seed"]]) for entry in entries]
        yield (f"| {variant} | " + " | ".join(f"{gain:+.2f}" for gain in [*gains, statistics.mean(gains)]) + " |")


def document(results: list[dict[str, Any]]) -> str:
    """Return docs/results.md: a pure function of the committed summaries."""
    seeds = sorted({entry["seed"] for entry in results})
    versions = results[0]["versions"]
    step = statistics.mean(
        dict(map(tuple, (point[:2] for point in entry["curve"])))[round] - before
        for entry in of_variant(results, "GFPL")
        for round, before in entry["before_retraining"]
    )
    return f"""# Results

Generated from `benchmarks/results/mnist.json` by `python -m benchmarks.accuracy table`; measured by

    {COMMAND}

with torch {versions["torch"]}, flwr {versions["flwr"]}, Python {versions["python"]}, on the CPU, a thread a process.

## MNIST, 20 sites, 30 rounds

n-way k-shot with n = 3 ± 2 classes and k = 100 samples a class at each site, CNN with 50-dimensional features,
batch 4, learning rate 0.01, momentum 0.5, one local epoch a round; first exchange after round 10, then every 5
rounds. Accuracy in percent on a site's own classes, unweighted mean over sites; mean ± sample standard deviation over
{len(seeds)} seeds. "std over sites" is the standard deviation over sites, averaged over seeds. "up" and "down" are
all bytes that Flower transmits for the contents of the messages of a run, bookkeeping included.

{chr(10).join(accuracy_rows(results))}

Difference to Local with the same seed, in percentage points (classifier):

{chr(10).join(paired_rows(results))}

Retraining on pseudo-features changed GFPL's accuracy, from just before to just after it, by {100 * step:+.2f} points
on average over exchanges and seeds.
"""


def main() -> None:
    """Measure, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure what is missing")
    runner.add_argument(
        "--data-dir", type=Path, required=True, help="folder with mnist.safetensors, or to download to"
    )
    runner.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    commands.add_parser("table", help="write docs/results.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.data_dir, arguments.jobs)
    else:
        REPORT.write_text(document(load()))


if __name__ == "__main__":
    main()
