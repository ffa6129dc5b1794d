"""The outcome of a run: the few kilobytes that tables and figures are made of, and that are kept for good."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gfpl_flwr.flower.files import write_atomically
from gfpl_flwr.report import Run
from gfpl_flwr.report.records import SHARES

DIGITS = 5
SCENE = "scene.json"


@dataclass(frozen=True)
class Outcome:
    """What one run found and what it cost. Accuracies are fractions; means over sites are unweighted.

    Attributes:
        key: of the run, see :class:`gfpl_flwr.experiments.design.Planned`.
        options: that differ from the defaults.
        versions: of Python, the packages and this one; digest of its sources, processor and GPU;
            "a, then b" where a run was resumed with another.
        command: that started the run.
        head: that is reported by default.
        accuracy: of every inference head at the end: mean and population standard deviation over sites.
        by_site: accuracy of every site at the end, with the default head.
        trained: mean accuracy after the last local training, before anything that was handed down.
        curve: round, mean and standard deviation of the default head.
        common: ``all``, ``seen`` and ``unseen`` classes of the common test images to round and mean accuracy.
        rounds_to_99: first round whose mean is at least 99 % of the last; None without any.
        messages: to sites, each of them answered.
        up, down: bytes of messages, bytes of their tensors, and numbers in these, of all sites over the whole run.
        exchanges: visits in which sites sent tensors.
        merges: round, components in and components out of each fusion.
        failures: contributions that are missing.
        seconds: of wall time.
        scene: of :mod:`gfpl_flwr.experiments.scene`; None where none was asked for.
    """

    key: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    head: str
    accuracy: Mapping[str, tuple[float, float]]
    by_site: Mapping[str, float]
    trained: float
    curve: list[tuple[int, float, float]]
    common: Mapping[str, list[tuple[int, float]]]
    rounds_to_99: int | None
    messages: int
    up: tuple[int, int, int]
    down: tuple[int, int, int]
    exchanges: int
    merges: list[tuple[int, int, int]]
    failures: int
    seconds: float
    scene: Mapping[str, Any] | None = None

    def final(self, share: str) -> float | None:
        """Return the accuracy on a share of the common test images at the end; None where it was not tested."""
        return self.common[share][-1][1] if self.common.get(share) else None


def outcome_of(run: Run, *, key: str, options: Mapping[str, Any]) -> Outcome:
    """Take what tables and figures need from a run's folder.

    Args:
        run: read from the folder.
        key, options: of the run as it was planned.
    """
    facts = json.loads((run.path / "config.json").read_text())
    scene = run.path / SCENE
    finals = {head: run.final_accuracy(head) for head in run.heads}
    totals, trained = run.totals, run.after_training()
    shares = {share: run.common_curve(share) for share in SHARES}
    return Outcome(
        key=key,
        options=dict(options),
        versions={**facts["versions"], "gfpl-flwr": facts["app_version"]},
        command=facts["command"],
        head=run.head,
        accuracy={head: (round(its.mean, DIGITS), round(its.std, DIGITS)) for head, its in finals.items()},
        by_site={str(site): round(value, DIGITS) for site, value in run.final_accuracy().by_site.items()},
        trained=round(trained[-1].mean, DIGITS) if trained else float("nan"),
        curve=[(point.round, round(point.mean, DIGITS), round(point.std, DIGITS)) for point in run.curve()],
        common={
            share: [(point.round, round(point.mean, DIGITS)) for point in points]
            for share, points in shares.items()
            if points
        },
        rounds_to_99=run.rounds_to(),
        messages=totals.messages,
        up=(totals.bytes_up, totals.array_bytes_up, totals.scalars_up),
        down=(totals.bytes_down, totals.array_bytes_down, totals.scalars_down),
        exchanges=sum(bool(visit.traffic["scalars_up"]) for visit in run.visits),
        merges=[(merge.round, merge.components_in, merge.components_out) for merge in run.merges],
        failures=len(run.failures),
        seconds=round(totals.seconds, 1),
        scene=json.loads(scene.read_text()) if scene.exists() else None,
    )


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes, one a line, sorted by key, so that the same ones give the same bytes."""
    lines = [json.dumps(asdict(outcome), sort_keys=True) for outcome in sorted(outcomes, key=lambda its: its.key)]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Read outcomes by key.

    Raises:
        ValueError: a line is none; names file and line.
    """
    found = {}
    names = {field.name for field in fields(Outcome)}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = json.loads(line)
            if entry.keys() != names:
                raise ValueError(f"keys differ: {sorted(entry.keys() ^ names)}")
            outcome = Outcome(**entry)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: expected the outcome of a run ({error})") from None
        found[outcome.key] = outcome
    return found
