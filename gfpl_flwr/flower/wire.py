"""What a message says: a visit's order to a site, and the site's reply with its bookkeeping.

Tensors travel as :mod:`gfpl_flwr.flower.tensors` packs them; everything else is a short list of numbers that is
checked before it is believed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.flower.tensors import decode_tensors, encode_tensors
from gfpl_flwr.site_names import SiteName
from gfpl_flwr.training import PHASES, CommonCounts, Counts

T = TypeVar("T", int, bool, str)

# What a reply can claim: far more than any site needs, far less than it takes to hurt the server.
LARGEST_COUNT, LARGEST_TABLE, LONGEST_NAME = 10**9, 4_000_000, 64
ARRAYS, VISIT, SITE, MEASURES = "arrays", "visit", "site", "measures"


@dataclass(frozen=True)
class Order:
    """A visit as the server asks for it: of which run, and with what state.

    Attributes:
        run: key of the run, the same again when a run is resumed.
        visit: which rounds, and what travels.
        tensors: what the server hands down.
    """

    run: str
    visit: Visit
    tensors: Mapping[str, Tensor]


def encode_order(order: Order, each: Sequence[Mapping[str, Tensor]] = ()) -> RecordDict:
    """Pack a visit's order as the content of a message to a node.

    Args:
        order: as it is for all sites of the node.
        each: what the server hands down to each of them instead, where they are not told the same.
    """
    visit, downs = order.visit, each or [order.tensors]
    fields: dict[str, int | str | bool] = {
        "run": order.run,
        "visit": visit.index,
        "first-round": visit.first_round,
        "last-round": visit.last_round,
        "download": visit.download,
        "upload": visit.upload,
    }
    arrays = {_of_place(place, len(downs)): encode_tensors(down) for place, down in enumerate(downs)}
    return RecordDict({VISIT: ConfigRecord(dict(fields)), **arrays})


def decode_order(content: RecordDict, place: int = 0) -> Order:
    """Unpack a visit's order.

    Args:
        content: of the message to a node.
        place: for which of its sites.

    Raises:
        ValueError: a record or field is missing or of the wrong type.
    """
    fields = _config(content, VISIT)
    visit = Visit(
        _typed(fields, "visit", int),
        _typed(fields, "first-round", int),
        _typed(fields, "last-round", int),
        _typed(fields, "download", bool),
        _typed(fields, "upload", bool),
    )
    count = len(content.array_records)
    expected = {_of_place(place, count) for place in range(count)}
    if content.array_records.keys() != expected or not expected or (count > 1 and place >= count):
        raise ValueError(f"expected an array record {ARRAYS!r} for each site, got {sorted(content.array_records)}")
    arrays = content.array_records[_of_place(place if count > 1 else 0, count)]
    return Order(_typed(fields, "run", str), visit, decode_tensors(arrays))


def _of_place(place: int, count: int) -> str:
    return f"{ARRAYS}.{place}" if count > 1 else ARRAYS


@dataclass(frozen=True)
class SiteReply:
    """A reply with the name of the site it comes from.

    Attributes:
        site: number of the site, or its name on a real device.
        run, visit: what it answers.
        reply: what the site's half of the algorithm returned.
        label_counts: training samples by class, empty where the site does not tell.
        started_from: the visit whose model the site went on from; 0 for the initial model.
    """

    site: SiteName
    run: str
    visit: int
    reply: Reply
    label_counts: Mapping[int, int]
    started_from: int = 0


def encode_reply(answer: SiteReply) -> RecordDict:
    """Pack a site's reply as the content of a message; only classes with test samples are listed."""
    reply = answer.reply
    measures: dict[str, int | float | list[int] | list[float]] = {"samples": reply.samples}
    if answer.label_counts:
        measures["label-classes"] = list(answer.label_counts)
        measures["label-counts"] = list(answer.label_counts.values())
    classes = reply.accuracy[0].total.nonzero().flatten() if reply.accuracy else torch.empty(0, dtype=torch.int64)
    if len(classes):
        measures["rounds"] = [counts.round for counts in reply.accuracy]
        measures["phases"] = [PHASES.index(counts.phase) for counts in reply.accuracy]
        measures["test-classes"] = classes.tolist()
        measures["test-counts"] = reply.accuracy[0].total[classes].tolist()
        for head in reply.accuracy[0].correct:
            rows = [counts.correct[head][classes] for counts in reply.accuracy]
            measures[f"correct.{head}"] = torch.cat(rows).tolist()
        common = [(place, counts.common) for place, counts in enumerate(reply.accuracy) if counts.common is not None]
        if common:
            measures["common-at"] = [place for place, _ in common]
            measures["common-counts"] = list(common[0][1].total)
            for head in common[0][1].correct:
                measures[f"common-correct.{head}"] = [right for _, its in common for right in its.correct[head]]
    measures |= {f"seconds.{phase}": float(value) for phase, value in reply.seconds.items()}
    measures |= {f"diagnostics.{name}": float(value) for name, value in reply.diagnostics.items()}
    site = ConfigRecord(
        {"site": answer.site, "run": answer.run, "visit": answer.visit, "started-from": answer.started_from}
    )
    return RecordDict({SITE: site, MEASURES: MetricRecord(measures), ARRAYS: encode_tensors(reply.tensors)})


def decode_reply(content: RecordDict) -> SiteReply:
    """Unpack and check a site's reply; whatever a site sends, this returns a sound value or raises.

    Raises:
        ValueError: says which record or field is missing, of the wrong type or impossible.
    """
    fields = _config(content, SITE)
    if content.metric_records.keys() != {MEASURES}:
        raise ValueError(f"expected one metric record {MEASURES!r}, got {sorted(content.metric_records)}")
    measures = content.metric_records[MEASURES]
    samples = measures.get("samples")
    if not isinstance(samples, int) or not 0 <= samples <= LARGEST_COUNT:
        raise ValueError(f"samples must be an integer from 0 to {LARGEST_COUNT}, it is {samples!r}")
    labels = dict(zip(_naturals(measures, "label-classes"), _naturals(measures, "label-counts"), strict=True))
    grouped: dict[str, dict[str, float]] = {"seconds": {}, "diagnostics": {}}
    for key, value in measures.items():
        group, _, name = key.partition(".")
        if group not in grouped:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, it is {value!r}")
        grouped[group][name] = float(value)
    reply = Reply(
        decode_tensors(_arrays(content)),
        samples,
        _accuracy(measures),
        diagnostics=grouped["diagnostics"],
        seconds=grouped["seconds"],
    )
    run, visit, started_from = (
        _typed(fields, "run", str),
        _typed(fields, "visit", int),
        _typed(fields, "started-from", int),
    )
    return SiteReply(_site(fields), run, visit, reply, labels, started_from)


def _site(fields: ConfigRecord) -> SiteName:
    site = fields.get("site")
    if isinstance(site, int) and not isinstance(site, bool) and 0 <= site <= LARGEST_COUNT:
        return site
    if isinstance(site, str) and 0 < len(site) <= LONGEST_NAME and site.isprintable():
        return site
    raise ValueError(
        f"site must be an integer >= 0 or a name of at most {LONGEST_NAME} characters: {str(site)[:80]!r}"
    )


def _accuracy(measures: MetricRecord) -> list[Counts]:
    rounds, phases = _naturals(measures, "rounds"), _naturals(measures, "phases")
    classes, totals = _naturals(measures, "test-classes"), _naturals(measures, "test-counts")
    if not rounds:
        return []
    if len(phases) != len(rounds) or len(totals) != len(classes) or not classes or max(phases) >= len(PHASES):
        raise ValueError("rounds, phases, test-classes and test-counts do not fit each other")
    if min(totals) < 1:
        raise ValueError("test-counts must be >= 1")
    heads = [key.removeprefix("correct.") for key in measures if key.startswith("correct.")]
    if "classifier" not in heads:
        raise ValueError("correct.classifier is missing")
    index, width = torch.tensor(classes), max(classes) + 1
    if width * len(rounds) * len(heads) > LARGEST_TABLE:
        raise ValueError(f"{len(rounds)} evaluations of {len(heads)} heads on {width} classes: too many to be true")
    total = torch.zeros(width, dtype=torch.int64).index_put((index,), torch.tensor(totals))
    correct: list[dict[str, Tensor]] = [{} for _ in rounds]
    for head in heads:
        rows = _naturals(measures, f"correct.{head}")
        if len(rows) != len(rounds) * len(classes):
            raise ValueError(f"correct.{head} has {len(rows)} values, expected {len(rounds)} x {len(classes)}")
        table = torch.tensor(rows).reshape(len(rounds), len(classes))
        if bool((table > torch.tensor(totals)).any()):
            raise ValueError(f"correct.{head} counts more correct samples than there are")
        for row, of_round in zip(table, correct, strict=True):
            of_round[head] = torch.zeros(width, dtype=torch.int64).index_put((index,), row)
    common = _common(measures, heads, len(rounds))
    return [
        Counts(round, PHASES[phase], total, of_round, common.get(place))
        for place, (round, phase, of_round) in enumerate(zip(rounds, phases, correct, strict=True))
    ]


def _common(measures: MetricRecord, heads: Sequence[str], evaluations: int) -> dict[int, CommonCounts]:
    """Return what was counted on the common test images, by the place of the evaluation it belongs to."""
    places = _naturals(measures, "common-at")
    if not places:
        return {}
    totals = _naturals(measures, "common-counts")
    if len(totals) != 2 or sorted(set(places)) != places or places[-1] >= evaluations:
        raise ValueError("common-at and common-counts do not fit the evaluations")
    correct: list[dict[str, tuple[int, int]]] = [{} for _ in places]
    for head in heads:
        values = _naturals(measures, f"common-correct.{head}")
        if len(values) != 2 * len(places):
            raise ValueError(f"common-correct.{head} has {len(values)} values, expected {len(places)} x 2")
        for of_place, seen, unseen in zip(correct, values[::2], values[1::2], strict=True):
            if seen > totals[0] or unseen > totals[1]:
                raise ValueError(f"common-correct.{head} counts more correct samples than there are")
            of_place[head] = (seen, unseen)
    total = (totals[0], totals[1])
    return {place: CommonCounts(total, its) for place, its in zip(places, correct, strict=True)}


def _naturals(measures: MetricRecord, key: str) -> list[int]:
    values = measures.get(key, [])
    if not isinstance(values, list) or not all(
        isinstance(value, int) and 0 <= value <= LARGEST_COUNT for value in values
    ):
        raise ValueError(f"{key} must be a list of integers from 0 to {LARGEST_COUNT}")
    return [int(value) for value in values]


def _config(content: RecordDict, name: str) -> ConfigRecord:
    if content.config_records.keys() != {name}:
        raise ValueError(f"expected one config record {name!r}, got {sorted(content.config_records)}")
    return content.config_records[name]


def _arrays(content: RecordDict) -> ArrayRecord:
    if content.array_records.keys() != {ARRAYS}:
        raise ValueError(f"expected one array record {ARRAYS!r}, got {sorted(content.array_records)}")
    return content.array_records[ARRAYS]


def _typed(fields: ConfigRecord, key: str, wanted: type[T]) -> T:
    value = fields.get(key)
    if type(value) is not wanted:
        raise ValueError(f"{key} must be of type {wanted.__name__}, it is {value!r}")
    return value
