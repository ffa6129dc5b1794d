"""The settings in which precisions are compared, the file of the measurements, and the page made of it."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gfpl_flwr.core.compression import PRECISIONS
from gfpl_flwr.report.formatting import human_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "precision.json"
REPORT = ROOT / "docs" / "precision.md"
COMMAND = "python -m benchmarks.precision run --data-dir data"

SETTINGS: dict[str, dict[str, Any]] = {
    "MNIST, CNN": {
        "dataset": "mnist",
        "num-sites": 20,
        "rounds": 30,
        "gfpl.first-exchange": 10,
        "gfpl.exchange-every": 5,
        "gfpl.classifier-on": "features",
    },
    "CIFAR-10, CNN": {
        "dataset": "cifar10",
        "model": "cnn",
        "num-sites": 10,
        "rounds": 15,
        "gfpl.first-exchange": 5,
        "gfpl.exchange-every": 5,
        "gfpl.classifier-on": "features",
    },
    "CIFAR-10, ResNet18": {
        "dataset": "cifar10",
        "num-sites": 4,
        "shots": 30,
        "test-shots": 30,
        "rounds": 6,
        "gfpl.first-exchange": 2,
        "gfpl.exchange-every": 2,
        "gfpl.classifier-on": "features",
    },
}
SEEDS = {"MNIST, CNN": (1, 2, 3), "CIFAR-10, CNN": (1, 2, 3), "CIFAR-10, ResNet18": (1, 2, 3)}
SMALL = tuple(precision for precision in PRECISIONS if precision != "float32")
Results = dict[str, list[dict[str, Any]]]


def load() -> Results:
    """Return what was measured so far."""
    empty: Results = {"runs": [], "components": []}
    return empty | json.loads(RESULTS.read_text()) if RESULTS.exists() else empty


def save(results: Results) -> None:
    """Write the results in the order of the tables, one measurement a line."""
    settings, precisions = list(SETTINGS), list(PRECISIONS)
    runs = sorted(
        results["runs"], key=lambda e: (settings.index(e["setting"]), e["seed"], precisions.index(e["precision"]))
    )
    components = sorted(results["components"], key=lambda e: (settings.index(e["setting"]), e["of"] != "sites"))
    parts = [
        f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]"
        for key, entries in (("runs", runs), ("components", components))
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def of(results: Results, setting: str, precision: str) -> list[dict[str, Any]]:
    """Return the runs of one setting in one precision, by seed."""
    return [entry for entry in results["runs"] if (entry["setting"], entry["precision"]) == (setting, precision)]


def accuracies(results: Results, setting: str, precision: str) -> list[float]:
    """Return the accuracies of the classifier as fractions, by seed."""
    return [entry["accuracy"]["classifier"]["mean"] for entry in of(results, setting, precision)]


def after_first_retraining(results: Results, setting: str, precision: str) -> list[float]:
    """Return the accuracies just after the first prototypes were handed down, as fractions, by seed."""
    first = SETTINGS[setting]["gfpl.first-exchange"]
    curves = [entry["curve"] for entry in of(results, setting, precision)]
    return [mean for curve in curves for round, mean, _ in curve if round == first]


def percent(values: list[float]) -> str:
    """Return mean and, over several seeds, sample standard deviation in percent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def accuracy_rows(results: Results, setting: str) -> Iterator[str]:
    """Yield the table of accuracies and of their differences to float32 with the same seed."""
    exact, exact_first = (of_run(results, setting, "float32") for of_run in (accuracies, after_first_retraining))
    seeds = " | ".join(f"seed {seed}" for seed in SEEDS[setting])
    yield f"| precision | accuracy % | {seeds} | mean | after first retraining | components in → out |"
    yield "|---|---|" + "---|" * (len(exact) + 3)
    for precision in PRECISIONS:
        values = accuracies(results, setting, precision)
        gains = [100 * (value - before) for value, before in zip(values, exact, strict=True)]
        first = statistics.mean(after_first_retraining(results, setting, precision)) - statistics.mean(exact_first)
        columns = [*gains, statistics.mean(gains), 100 * first]
        told = [f"{gain:+.2f}" if precision in SMALL else "–" for gain in columns]
        merges = [merge for entry in of(results, setting, precision) for merge in entry["merges"]]
        came, left = (sum(merge[side] for merge in merges) for side in (0, 1))
        yield f"| {precision} | {percent(values)} | {' | '.join(told)} | {came} → {left} |"


def bytes_rows(results: Results, setting: str) -> Iterator[str]:
    """Yield the table of bytes: a site's arrays in one exchange, and whole messages of a run, up and down."""
    yield "| precision | arrays up | arrays down | messages of a run up | messages of a run down | of float32 |"
    yield "|---|---|---|---|---|---|"
    whole: dict[str, float] = {}
    for precision in PRECISIONS:
        entries = of(results, setting, precision)
        arrays = []
        for way in ("up", "down"):
            sent = [visit[f"array_bytes_{way}"] for entry in entries for visit in entry["visits"]]
            arrays.append(statistics.mean(size for size in sent if size) / SETTINGS[setting]["num-sites"])
        up, down = (statistics.mean(entry["bytes"][way] for entry in entries) for way in ("up", "down"))
        whole[precision] = up + down
        sizes = " | ".join(map(human_bytes, [*arrays, up, down]))
        yield f"| {precision} | {sizes} | {100 * whole[precision] / whole['float32']:.0f} % |"


def framing(results: Results) -> float:
    """Return the bytes of a message that are no array, on average over all runs."""
    ways, runs = ("up", "down"), results["runs"]
    rest: int = sum(entry["bytes"][way] - entry["array_bytes"][way] for entry in runs for way in ways)
    return rest / sum(len(ways) * int(entry["messages"]) for entry in runs)


def component_rows(results: Results) -> Iterator[str]:
    """Yield the table of how far a component moves."""
    yield "| components | D | rows | nearest other | precision | median | 99 % | largest | zeros kept |"
    yield "|---|---|---|---|---|---|---|---|---|"
    names = {"sites": "as sites send them", "fused": "as the server fused them"}
    for entry in results["components"]:
        for precision in SMALL:
            nats = entry[precision]
            first = f"{entry['setting']}, {names[entry['of']]} | {entry['dim']} | {entry['components']}"
            moves = " | ".join(f"{nats[key]:.1e}" for key in ("median", "p99", "max"))
            kept = f"{nats['zeros_kept']} of {entry['zeros']}"
            yield f"| {first} | {entry['nearest']:.1f} | {precision} | {moves} | {kept} |"


def described(setting: str) -> str:
    """Return a setting in words."""
    changes = SETTINGS[setting]
    shots = f"{changes['shots']} training and {changes['test-shots']} test" if "shots" in changes else "100 training"
    first, every = changes["gfpl.first-exchange"], changes["gfpl.exchange-every"]
    seeds = f"{len(SEEDS[setting])} seeds" if len(SEEDS[setting]) > 1 else "one seed"
    return f"""{changes["num-sites"]} sites of 3 ± 2 classes with about {shots} samples a class, {changes["rounds"]}
rounds; first exchange after round {first}, then every {every}; {seeds}."""


def section(results: Results, setting: str) -> str:
    """Return what the document says of one setting."""
    return f"""## {setting}

{described(setting)}

{chr(10).join(accuracy_rows(results, setting))}

{chr(10).join(bytes_rows(results, setting))}
"""


def document(results: Results) -> str:
    """Return docs/precision.md: a pure function of the committed measurements."""
    versions = results["runs"][0]["versions"]
    sections = "\n".join(section(results, setting) for setting in SETTINGS)
    return f"""# Prototypes in float16 and int8

Generated from `benchmarks/results/precision.json` by `python -m benchmarks.precision table`; measured by

    {COMMAND}

with torch {versions["torch"]}, flwr {versions["flwr"]}, Python {versions["python"]}, on the CPU, one thread.

`gfpl.precision` says in which numbers prototypes travel, from the sites and to them. The server fuses, keeps and
checkpoints float32 whatever it is. A row, that is one component of D dimensions, costs

| precision | mean and variance as | bytes a row | D = 50 | D = 512 | error |
|---|---|---|---|---|---|
| float32 | themselves | 8 D + 12 | 412 | 4108 | none |
| float16 | float16 of mean and log-variance | 4 D + 5 | 205 | 2053 | 2^-11 of each |
| int8 | int8 of mean and log-variance, a step and a zero point a row | 2 D + 21 | 121 | 1045 | half a step |

A step is the range of the row's means, or of its log-variances, over 254. An error e of the log-variance is a factor
exp(e) of the variance. float16 loses 2^-25 of means below 2^-14 and refuses means beyond ±65504. Units that ReLU
switched off for a whole component arrive as exact zeros in every form. Counts stay float32, so the number of samples
behind a class survives the fusion; labels take one byte up to 256 classes.

All of it was measured with the classifier on features, which was the default then.

In the tables below, accuracy is that of the classifier on a site's own classes in percent, mean over sites, then mean
± sample standard deviation over seeds. "seed 1" and so on are differences to float32 with the same seed in percentage
points, "mean" is their mean. Runs of one seed are equal, bit for bit, until the first fused prototypes come down.
"after first retraining" is the mean difference right then, which is the prototypes' alone; from there on training
amplifies whatever differs, down to the last digit.

"arrays" are the bytes of the arrays of one site in one exchange, their names included. "messages of a run" is all
that Flower transmits for the contents of the messages of all sites, framing and bookkeeping included (on average
{human_bytes(framing(results))} a message, which no precision makes smaller); "of float32" compares their sums.

The settings on CIFAR-10 are as small as a few minutes on one core demand: they compare precisions, and say nothing of
the accuracy that the models can reach.

{sections}
## How far a component moves

Bhattacharyya distance in nats, summed over the dimensions, between a component and what arrives of it, beside the
median distance from a component to its nearest other one. Components of seed 1: those of all sites in the first
exchange, and the fused ones of the last.

{chr(10).join(component_rows(results))}
"""
