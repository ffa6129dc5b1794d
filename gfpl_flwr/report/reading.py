"""Reader of a run's folder; each value is checked, and an error names the file, the line and the key.

The folder holds ``config.json`` (settings and versions), ``rounds.jsonl`` (one JSON object per visit; a visit
is one message to every site and its reply, and covers several local rounds) and, once the run has ended,
``summary.json``. All numbers come from the first two, so an interrupted run has a report as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfpl_flwr.report.records import PHASES, TRAFFIC_KEYS, Accuracy, Common, Merge, SiteReply, Visit
from gfpl_flwr.report.runs import Run
from gfpl_flwr.site_names import SiteName, site_order


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
            raise ValueError(f"{where}, site {reply.site}: expected rounds up to {last}, got accuracy of {late[0]}")
    return Visit(
        visit=number,
        first_round=first,
        last_round=last,
        retrain=_get(record, "retrain", bool, where),
        exchange=_get(record, "exchange", bool, where),
        traffic={key: _count(record, key, where) for key in TRAFFIC_KEYS},
        seconds=float(_get(_get(record, "seconds", dict, where), "total", (int, float), where)),
        merge=_merge(record["fusion"], number, last, where) if _fused(record, where) else None,
        sites=tuple(sorted(sites, key=lambda reply: site_order(reply.site))),
        notes=tuple((_name(entry, where), str(entry.get("note", ""))) for entry in record.get("notes", [])),
    )


def _fused(record: dict[str, Any], where: str) -> bool:
    """Return whether an aggregation tells of components; other methods tell other things, or nothing."""
    return record.get("fusion") is not None and "components_in" in _get(record, "fusion", dict, where)


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
    site = _name(entry, where)
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


def _name(entry: dict[str, Any], where: str) -> SiteName:
    name: SiteName = _get(entry, "site", (int, str), where)
    if isinstance(name, int):
        return _count(entry, "site", where)
    if not name.strip():
        raise ValueError(f"{where}: expected a number or a name for 'site', got {name!r}")
    return name


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
            raise ValueError(f"{where}: expected at most {total} correct in round {number}, {head} has {hits}")
    return Accuracy(number, phase, classes, total, correct, _common(entry, number, where))


def _common(entry: dict[str, Any], number: int, where: str) -> Common | None:
    if "common" not in entry:
        return None
    counts = _get(entry, "common", dict, where)
    seen, unseen = _ints(counts, "total", where, length=2)
    correct = {}
    for head in _get(counts, "correct", dict, where):
        hits = _ints(counts["correct"], head, where, length=2)
        if hits[0] > seen or hits[1] > unseen:
            raise ValueError(
                f"{where}: expected at most {(seen, unseen)} correct on common images in round {number}, "
                f"{head} has {hits}"
            )
        correct[head] = (hits[0], hits[1])
    return Common((seen, unseen), correct)


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
