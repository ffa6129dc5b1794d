"""Reader of a run's folder, and every number that tables and figures show.

A run's folder holds ``config.json`` (settings and versions), ``rounds.jsonl`` (one JSON object per visit;
a visit is one message to every site and its reply, and covers several local rounds) and, once the run has
ended, ``summary.json``. All numbers come from the first two, so an interrupted run has a report as well.

Accuracies are fractions in [0, 1]. Means over sites are unweighted, so that a site with many test samples
counts like any other, and standard deviations are the population's (divided by S).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PHASES = ("train", "retrain")
TRAFFIC_KEYS = (
    "messages",
    "bytes_up",
    "bytes_down",
    "array_bytes_up",
    "array_bytes_down",
    "scalars_up",
    "scalars_down",
)


class Point(NamedTuple):
    """Accuracy after one local round: unweighted mean and population std over ``n_sites`` sites."""

    round: int
    mean: float
    std: float
    n_sites: int


class Final(NamedTuple):
    """Accuracy at the end: of each site, and mean and population std over sites (NaN without any)."""

    by_site: dict[int, float]
    mean: float
    std: float


class Traffic(NamedTuple):
    """Bytes sent by and to all sites together, from the start until the model of ``round`` existed."""

    round: int
    up: int
    down: int


class Totals(NamedTuple):
    """Sums over all visits: messages, bytes, bytes and scalars of the arrays alone, seconds of wall time."""

    messages: int
    bytes_up: int
    bytes_down: int
    array_bytes_up: int
    array_bytes_down: int
    scalars_up: int
    scalars_down: int
    seconds: float


class Failure(NamedTuple):
    """A site's missing contribution to one visit, with the reason that the server recorded."""

    visit: int
    first_round: int
    last_round: int
    site: int
    reason: str


class Accuracy(NamedTuple):
    """Test counts of one site after one round: ``total`` per class, ``correct`` per head and class."""

    round: int
    phase: str
    classes: tuple[int, ...]
    total: tuple[int, ...]
    correct: dict[str, tuple[int, ...]]

    def fraction(self, head: str) -> float | None:
        """Return the share of test samples that ``head`` gets right; None without head or samples."""
        samples = sum(self.total)
        return sum(self.correct[head]) / samples if samples and head in self.correct else None


class Merge(NamedTuple):
    """One fusion on the server: components before and after, in all and by class."""

    visit: int
    round: int
    components_in: int
    components_out: int
    by_class: dict[int, tuple[int, int]]
    suppressed_classes: int

    @property
    def rate(self) -> float:
        """Share of the components that fusion merged away, (in - out) / in; 0 when nothing came in."""
        return (self.components_in - self.components_out) / self.components_in if self.components_in else 0.0


@dataclass(frozen=True)
class SiteReply:
    """What one site answered in one visit; a site that failed has a ``reason`` and nothing else."""

    site: int
    status: str
    reason: str
    labels: dict[int, int]
    accuracy: tuple[Accuracy, ...]

    @property
    def ok(self) -> bool:
        """Whether the reply was used."""
        return self.status == "ok"


@dataclass(frozen=True)
class Visit:
    """One line of ``rounds.jsonl``; a visit that only retrains has ``first_round = last_round + 1``."""

    visit: int
    first_round: int
    last_round: int
    retrain: bool
    exchange: bool
    traffic: dict[str, int]
    seconds: float
    merge: Merge | None
    sites: tuple[SiteReply, ...]

    @property
    def down_round(self) -> int:
        """The round whose model needs what was sent down: the one before the first when it is retrained."""
        return min(self.first_round - self.retrain, self.last_round)


@dataclass(frozen=True)
class Run:
    """A run as its files tell it: the settings, the visits in order, and the numbers derived from them."""

    path: Path
    name: str
    config: dict[str, Any]
    visits: tuple[Visit, ...]
    status: str
    reason: str
    notes: tuple[str, ...]

    @cached_property
    def sites(self) -> tuple[int, ...]:
        """The sites that any visit names, sorted, those that never answered included."""
        return tuple(sorted({reply.site for visit in self.visits for reply in visit.sites}))

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The inference heads that were evaluated, in the order in which they first appear."""
        return tuple(
            dict.fromkeys(
                head
                for v in self.visits
                for reply in v.sites
                for entry in reply.accuracy
                for head in entry.correct
            )
        )

    @property
    def head(self) -> str:
        """The head reported by default: the configured one, or the first that this algorithm evaluates."""
        configured = str(self.config.get("head", "classifier"))
        return configured if configured in self.heads or not self.heads else self.heads[0]

    @property
    def last_round(self) -> int:
        """The last local round that a visit covers; 0 without visits."""
        return max((visit.last_round for visit in self.visits), default=0)

    @property
    def exchange_rounds(self) -> tuple[int, ...]:
        """The rounds after which sites sent what they exchange."""
        return tuple(visit.last_round for visit in self.visits if visit.exchange)

    @cached_property
    def retrained_rounds(self) -> frozenset[int]:
        """The rounds for which at least one site told an accuracy after retraining."""
        entries = (entry for v in self.visits for reply in v.sites for entry in reply.accuracy)
        return frozenset(entry.round for entry in entries if entry.phase == "retrain")

    @property
    def merges(self) -> tuple[Merge, ...]:
        """The server's fusions, one per exchange that reached a quorum."""
        return tuple(visit.merge for visit in self.visits if visit.merge is not None)

    @property
    def failures(self) -> list[Failure]:
        """Every contribution that is missing, in the order of visits and sites."""
        return [
            Failure(v.visit, v.first_round, v.last_round, reply.site, reply.reason or reply.status)
            for v in self.visits
            for reply in v.sites
            if not reply.ok
        ]

    @property
    def stale_sites(self) -> tuple[int, ...]:
        """The sites whose last reply failed: they count with their last known accuracy, if there is one."""
        last = {reply.site: reply.ok for visit in self.visits for reply in visit.sites}
        return tuple(site for site in self.sites if not last[site])

    @property
    def labels(self) -> dict[int, dict[int, int]]:
        """Training samples per class of every site that told them: ``{site: {class: count}}``."""
        known = {r.site: r.labels for visit in self.visits for r in visit.sites if r.labels}
        return dict(sorted(known.items()))

    @property
    def totals(self) -> Totals:
        """What the run cost in messages, bytes, scalars and seconds."""
        sums = {key: sum(visit.traffic[key] for visit in self.visits) for key in TRAFFIC_KEYS}
        return Totals(**sums, seconds=float(sum(visit.seconds for visit in self.visits)))

    @property
    def first_array_round(self) -> int | None:
        """The first round whose model needed, or produced, a message with arrays; None without any."""
        rounds = [v.down_round for v in self.visits if v.traffic["array_bytes_down"]]
        rounds += [v.last_round for v in self.visits if v.traffic["array_bytes_up"]]
        return min(rounds, default=None)

    def curve(self, head: str | None = None) -> list[Point]:
        """Return the accuracy by round: after retraining where there was one, else after local training.

        A site that failed is carried on with its last known accuracy, so that the mean does not move because
        a weak or a strong site fell out. A site without test samples, or not yet heard of, is left out.

        Args:
            head: inference head; the run's default when None.

        Returns:
            One point per round that at least one site reported, sorted by round.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        return _points(self._by_round(head, PHASES))

    def before_retraining(self, head: str | None = None) -> list[Point]:
        """Return the accuracy by round after local training alone; else as :meth:`curve`."""
        return _points(self._by_round(head, ("train",)))

    def final_accuracy(self, head: str | None = None) -> Final:
        """Return every site's last known accuracy and their mean and std; see :attr:`stale_sites`.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        last: dict[int, float] = {}
        for _, values in sorted(self._by_round(head, PHASES).items()):
            last.update(values)
        by_site = dict(sorted(last.items()))
        if not by_site:
            return Final({}, float("nan"), float("nan"))
        return Final(by_site, *_mean_std(by_site))

    def rounds_to(self, fraction: float = 0.99, *, head: str | None = None) -> int | None:
        """Return the first round whose mean is at least ``fraction`` of the final mean; None without rounds.

        Raises:
            ValueError: the run did not evaluate that head.
        """
        curve = self.curve(head)
        return next((point.round for point in curve if point.mean >= fraction * curve[-1].mean), None)

    def cumulative_bytes(self) -> list[Traffic]:
        """Return the bytes sent until the model of each round existed, summed over all sites, both ways.

        A site sends after the last round of a visit. What it receives serves the first round of the visit or,
        when it retrains on it, the round before: that message pays for the accuracy after retraining.
        """
        rounds = range(1, self.last_round + 1)
        up = np.zeros(self.last_round + 1, dtype=np.int64)
        down = np.zeros(self.last_round + 1, dtype=np.int64)
        for visit in self.visits:
            up[visit.last_round] += visit.traffic["bytes_up"]
            down[visit.down_round] += visit.traffic["bytes_down"]
        up, down = up.cumsum(), down.cumsum()
        return [Traffic(r, int(up[r]), int(down[r])) for r in rounds]

    def _by_round(self, head: str | None, phases: tuple[str, ...]) -> dict[int, dict[int, float]]:
        """Collect ``{round: {site: accuracy}}``; of two phases of a round the later in ``phases`` wins."""
        head = head or self.head
        if self.heads and head not in self.heads:
            raise ValueError(f"run {self.name} has no head {head!r}, only {', '.join(self.heads)}")
        found: dict[int, dict[int, float]] = {}
        for phase in phases:
            for visit in self.visits:
                for reply in visit.sites:
                    for entry in reply.accuracy:
                        value = entry.fraction(head) if entry.phase == phase else None
                        if value is not None:
                            found.setdefault(entry.round, {})[reply.site] = value
        return found


def read_run(path: str | Path) -> Run:
    """Read a run's folder.

    A last line of ``rounds.jsonl`` that was cut while it was written (the process was killed) is left out and
    mentioned in ``notes``; so is a missing ``summary.json``.

    Args:
        path: the folder, for example ``runs/demo``.

    Returns:
        The run.

    Raises:
        ValueError: the folder or one of the two files is missing or damaged (file, line and key are named).
    """
    folder = Path(path)
    missing = [name for name in ("config.json", "rounds.jsonl") if not (folder / name).is_file()]
    if missing:
        what = f"it has no {' and no '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is not the folder of a run: {what}")
    settings = _load_object(folder / "config.json")
    visits, notes = _read_visits(folder / "rounds.jsonl")
    status, reason = "unfinished", ""
    if (folder / "summary.json").is_file():
        summary = _load_object(folder / "summary.json")
        status = _get(summary, "status", str, str(folder / "summary.json"))
        reason = str(summary.get("reason") or "")
    else:
        notes.append("summary.json is missing: the run goes on, or was stopped before it could write one")
    return Run(
        path=folder,
        name=_get(settings, "name", str, str(folder / "config.json")),
        config=_get(settings, "config", dict, str(folder / "config.json")),
        visits=tuple(visits),
        status=status,
        reason=reason,
        notes=tuple(notes),
    )


def display_names(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, numbered where two runs have the same, for use as labels."""
    names = [run.name for run in runs]
    return [f"{n} ({names[:i].count(n) + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _mean_std(values: Mapping[int, float]) -> tuple[float, float]:
    array = np.array([values[site] for site in sorted(values)], dtype=np.float64)
    return float(array.mean()), float(array.std())


def _points(by_round: Mapping[int, Mapping[int, float]]) -> list[Point]:
    known: dict[int, float] = {}
    points = []
    for number in sorted(by_round):
        known.update(by_round[number])
        points.append(Point(number, *_mean_std(known), len(known)))
    return points


def _read_visits(path: Path) -> tuple[list[Visit], list[str]]:
    lines = path.read_bytes().splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    visits: list[Visit] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return visits, [f"{path.name}: line {number} was cut while it was written and is left out"]
            raise ValueError(f"{where}: expected one JSON object, got {line[:60]!r} ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected one JSON object, got {line[:60]!r}")
        visits.append(_visit(record, where))
    return visits, []


def _visit(record: dict[str, Any], where: str) -> Visit:
    number, first = _count(record, "visit", where), _count(record, "first_round", where)
    last = _count(record, "last_round", where)
    if not 1 <= first <= last + 1:
        raise ValueError(f"{where}: expected 1 <= first_round <= last_round + 1, got {first} and {last}")
    sites = [_site(entry, where) for entry in _get(record, "sites", list, where)]
    for reply in sites:
        late = [entry.round for entry in reply.accuracy if entry.round > last]
        if late:
            raise ValueError(
                f"{where}, site {reply.site}: expected rounds up to {last}, got accuracy of {late[0]}"
            )
    return Visit(
        visit=number,
        first_round=first,
        last_round=last,
        retrain=_get(record, "retrain", bool, where),
        exchange=_get(record, "exchange", bool, where),
        traffic={key: _count(record, key, where) for key in TRAFFIC_KEYS},
        seconds=float(_get(_get(record, "seconds", dict, where), "total", (int, float), where)),
        merge=None
        if record.get("fusion") is None
        else _merge(_get(record, "fusion", dict, where), number, last, where),
        sites=tuple(sorted(sites, key=lambda reply: reply.site)),
    )


def _merge(fusion: dict[str, Any], visit: int, after_round: int, where: str) -> Merge:
    by_class = _get(fusion, "by_class", dict, where)
    pairs = {int(label): _ints(by_class, label, where, length=2) for label in by_class}
    return Merge(
        visit=visit,
        round=after_round,
        components_in=_count(fusion, "components_in", where),
        components_out=_count(fusion, "components_out", where),
        by_class={label: (pairs[label][0], pairs[label][1]) for label in sorted(pairs)},
        suppressed_classes=_count(fusion, "suppressed_classes", where),
    )


def _site(entry: object, where: str) -> SiteReply:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected one object per site in 'sites', got {entry!r}")
    site = _count(entry, "site", where)
    where = f"{where}, site {site}"
    status = _get(entry, "status", str, where)
    labels = _get({"labels": {}} | entry, "labels", dict, where)
    classes = _ints(labels, "classes", where) if labels else ()
    counts = _ints(labels, "counts", where, length=len(classes)) if labels else ()
    return SiteReply(
        site=site,
        status=status,
        reason=str(entry.get("reason") or ""),
        labels=dict(zip(classes, counts, strict=True)),
        accuracy=tuple(_accuracy(a, where) for a in _get({"accuracy": []} | entry, "accuracy", list, where)),
    )


def _accuracy(entry: object, where: str) -> Accuracy:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected objects in 'accuracy', got {entry!r}")
    number, phase = _count(entry, "round", where), _get(entry, "phase", str, where)
    if phase not in PHASES:
        raise ValueError(f"{where}: expected phase {' or '.join(PHASES)}, got {phase!r}")
    classes = _ints(entry, "classes", where)
    total = _ints(entry, "total", where, length=len(classes))
    heads = _get(entry, "correct", dict, where)
    correct = {head: _ints(heads, head, where, length=len(classes)) for head in heads}
    for head, hits in correct.items():
        if any(hit > all_ for hit, all_ in zip(hits, total, strict=True)):
            raise ValueError(
                f"{where}: expected at most {total} correct in round {number}, {head} has {hits}"
            )
    return Accuracy(number, phase, classes, total, correct)


def _load_object(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected one JSON object ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected one JSON object, got {loaded!r}"[:200])
    return loaded


def _get(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in record:
        raise ValueError(f"{where}: {key!r} is missing")
    value = record[key]
    # bool is an int to Python, and never one here.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: expected {names} for {key!r}, got {value!r}"[:300])
    return value


def _count(record: Mapping[str, Any], key: str, where: str) -> int:
    value = int(_get(record, key, int, where))
    if value < 0:
        raise ValueError(f"{where}: expected {key!r} >= 0, got {value}")
    return value


def _ints(record: Mapping[str, Any], key: str, where: str, *, length: int | None = None) -> tuple[int, ...]:
    values = _get(record, key, list, where)
    counts = tuple(_count({key: value}, key, where) for value in values)
    if length is not None and len(counts) != length:
        raise ValueError(f"{where}: expected {length} numbers for {key!r}, got {len(counts)}")
    return counts
