"""What float16 and int8 prototypes save and cost: bytes, accuracy, and the distance that a component moves.

    python -m benchmarks.precision run --data-dir data            # measures what precision.json lacks
    python -m benchmarks.precision run --data-dir data --fresh    # measures everything again
    python -m benchmarks.precision table                          # writes docs/precision.md from that file

Runs with one seed differ in nothing but ``gfpl.precision``, so accuracies are compared seed by seed. They count as
comparable only if the same code made them: a seed that was measured with other code is measured again as a whole.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.precision_results import REPORT, ROOT, SEEDS, SETTINGS, SMALL, Results, document, load, save
from gfpl_flwr.core.bhattacharyya import distance
from gfpl_flwr.core.compression import PRECISIONS, compress, decompress
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.flower.files import read_tensors
from gfpl_flwr.flower.inprocess import run_in_process
from gfpl_flwr.report import Run, read_run


def source_digest() -> str:
    """Return a digest of the code that a result depends on."""
    digest = hashlib.sha256()
    package = ROOT / "gfpl_flwr"
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in {"report", "cli.py", "watch.py"}:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def federate(changes: dict[str, Any], data_dir: Path) -> tuple[Run, GaussianPrototypes, dict[str, str]]:
    """Run a federation; return it, the fused prototypes of its last exchange, and versions."""
    with tempfile.TemporaryDirectory() as folder:
        place = {"name": "run", "data-dir": str(data_dir), "output-dir": folder, "device": "cpu"}
        path = run_in_process(changes | place).path
        versions: dict[str, str] = json.loads((path / "config.json").read_text())["versions"]
        state, _ = read_tensors(path / "prototypes.safetensors")
        return read_run(path), GaussianPrototypes.from_tensors(state), versions


def measure(setting: str, precision: str, seed: int, data_dir: Path) -> tuple[dict[str, Any], GaussianPrototypes]:
    """Run one setting in one precision; return its summary and the fused prototypes."""
    changes = SETTINGS[setting] | {"gfpl.precision": precision, "seed": seed}
    run, bank, versions = federate(changes, data_dir)
    keys = ("bytes_up", "bytes_down", "array_bytes_up", "array_bytes_down")
    visits = [{"round": visit.last_round} | {key: visit.traffic[key] for key in keys} for visit in run.visits]
    facts = {"setting": setting, "precision": precision, "seed": seed, "changes": changes, "versions": versions}
    return facts | summary_of(run) | {"visits": visits}, bank


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


def moved(setting: str, of: str, bank: GaussianPrototypes) -> dict[str, Any]:
    """Return how far components move when they are compressed, and how far away their nearest neighbours are.

    Args:
        setting, of: where the components come from.
        bank: real prototypes.

    Returns:
        Bhattacharyya distances in nats, summed over the dimensions: median, 99th percentile and largest of those
        between a component and what arrives of it; and the median to the nearest other component.
    """
    exact = bank.to(dtype=torch.float64)
    apart = distance(exact.means, exact.variances, exact.means, exact.variances)
    nearest = apart.fill_diagonal_(torch.inf).amin(1)
    facts: dict[str, Any] = {"setting": setting, "of": of, "components": len(bank), "dim": bank.dim}
    facts |= {"zeros": int((bank.means == 0).sum()), "nearest": nearest.median().item()}
    for precision in SMALL:
        back = decompress(compress(bank, precision), precision).to(dtype=torch.float64)
        rows = zip(exact.means, exact.variances, back.means, back.variances, strict=True)
        nats = torch.cat([distance(*(side[None] for side in row)).flatten() for row in rows])
        facts[precision] = {
            "median": nats.median().item(),
            "p99": nats.quantile(0.99).item(),
            "max": nats.max().item(),
            "zeros_kept": int(((bank.means == 0) & (back.means == 0)).sum()),
        }
    return facts


def run(data_dir: Path, settings: list[str], *, fresh: bool) -> None:
    """Measure what the results lack; each run is saved as soon as it is done."""
    code, results = source_digest(), load()
    for setting in settings:
        for seed in SEEDS[setting]:
            known = [entry for entry in results["runs"] if (entry["setting"], entry["seed"]) == (setting, seed)]
            complete = len(known) == len(PRECISIONS) and len({entry["code"] for entry in known}) == 1
            kept = known if complete and not fresh else [e for e in known if e["code"] == code and not fresh]
            results["runs"] = [entry for entry in results["runs"] if entry not in known] + kept
            for precision in PRECISIONS:
                if precision in {entry["precision"] for entry in kept}:
                    continue
                entry, bank = measure(setting, precision, seed, data_dir)
                results["runs"].append(entry | {"code": code})
                if precision == "float32" and seed == SEEDS[setting][0]:
                    keep_components(results, moved(setting, "fused", bank))
                save(results)
                accuracy = entry["accuracy"]["classifier"]["mean"]
                print(f"{setting}, seed {seed}, {precision}: {accuracy:.2%}, {entry['seconds']} s", flush=True)
        if fresh or not any((entry["setting"], entry["of"]) == (setting, "sites") for entry in results["components"]):
            # One exchange in which nothing merges: the server's state is what the sites sent.
            once = SETTINGS[setting] | {"rounds": SETTINGS[setting]["gfpl.first-exchange"], "gfpl.threshold": 0.0}
            _, bank, _ = federate(once | {"seed": SEEDS[setting][0]}, data_dir)
            keep_components(results, moved(setting, "sites", bank))
            save(results)


def keep_components(results: Results, facts: dict[str, Any]) -> None:
    """Put what was measured on components in the place of what was measured before."""
    same = (facts["setting"], facts["of"])
    others = [entry for entry in results["components"] if (entry["setting"], entry["of"]) != same]
    results["components"] = [*others, facts]


def main() -> None:
    """Measure, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure what is missing")
    runner.add_argument("--data-dir", type=Path, required=True, help="folder with the data sets, or to download to")
    runner.add_argument("--setting", choices=list(SETTINGS), action="append", help="only this one; may be repeated")
    runner.add_argument("--fresh", action="store_true", help="measure again what is there")
    commands.add_parser("table", help="write docs/precision.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.data_dir.resolve(), arguments.setting or list(SETTINGS), fresh=arguments.fresh)
    else:
        REPORT.write_text(document(load()))


if __name__ == "__main__":
    main()
