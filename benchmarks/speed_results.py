"""The file of what was measured of speed, and the page made of it."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pairs import Pair
from benchmarks.speed_text import FLOORS, MISSED, NO_GPU, PARTS, PHASES, WHOLE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
REPORT = ROOT / "docs" / "performance.md"
Results = dict[str, dict[str, Any]]
LINEAR, LARGEST_MIB = 0.15, 4_096


def load() -> Results:
    """Return what was measured so far."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def save(results: Results) -> None:
    """Write the results in the order of the page, a measurement a line."""
    parts = []
    for name in PARTS:
        if name in results:
            fields = [f'"{key}": {_lines(value)}' for key, value in results[name].items()]
            parts.append(f'"{name}": {{\n' + ",\n".join(fields) + "\n}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _lines(value: Any) -> str:
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)


def pairs_of(part: dict[str, Any]) -> list[Pair]:
    """Return the pairs of a part."""
    return [Pair(**fields) for fields in part.get("pairs", [])]


def short(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def pair_rows(pairs: list[Pair], notes: list[str]) -> Iterator[str]:
    """Yield a table of ratios with a heading for each work; the last column counts the notes from 1."""
    yield "| this project | compared with | times as fast | lowest to highest | goal | seconds of both | note |"
    yield "|---|---|---|---|---|---|---|"
    work, order = "", list(dict.fromkeys(pair.work for pair in pairs))
    for pair in sorted(pairs, key=lambda pair: order.index(pair.work)):
        if pair.work != work:
            work = pair.work
            yield f"| **{work}** | | | | | | |"
        goal = "–" if pair.goal is None else f"{pair.goal:g}, {'reached' if pair.ratio >= pair.goal else 'missed'}"
        spread = f"{short(min(pair.ratios))} to {short(max(pair.ratios))}" if len(pair.ratios) > 1 else "–"
        seconds = " / ".join(short(statistics.median(values)) for values in (pair.our_seconds, pair.their_seconds))
        marks = ", ".join(str(notes.index(note) + 1) for note in notes_of(pair))
        yield f"| {pair.ours} | {pair.theirs} | {short(pair.ratio)} | {spread} | {goal} | {seconds} | {marks} |"


def notes_of(pair: Pair) -> list[str]:
    """Return what readers must know of a pair, and why its goal was missed."""
    missed = pair.goal is not None and pair.ratio < pair.goal
    return [note for note in (pair.note, why_missed(pair) if missed else "") if note]


def why_missed(pair: Pair) -> str:
    """Return what is known of a missed goal."""
    return next(
        (why for (work, theirs), why in MISSED.items() if pair.work.startswith(work) and theirs in pair.theirs), ""
    )


def run_rows(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of whole runs."""
    yield "| program | seconds of 80 rounds | times ours | set-up | a round | after the rounds |"
    yield "|---|---|---|---|---|---|"
    ours = statistics.median(runs[0]["seconds"])
    for entry in runs:
        middle = {
            key: statistics.median(entry[key]) for key in ("seconds", "setup", "round", "after") if key in entry
        }
        parts = [short(middle[key]) if key in middle else "–" for key in ("setup", "round", "after")]
        ratio = short(middle["seconds"] / ours)
        yield f"| {entry['program']} | {short(middle['seconds'])} | {ratio} | {' | '.join(parts)} |"


def site_rows(sites: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of numbers of sites."""
    costs = {entry["sites"]: 1000 * statistics.median(entry["rounds"]) / entry["sites"] for entry in sites}
    yield "| sites | seconds a round | ms a site | to 100 sites | of it the sites, ms a site | peak memory |"
    yield "|---|---|---|---|---|---|"
    for entry in sites:
        count, cost = entry["sites"], costs[entry["sites"]]
        working = 1000 * statistics.median(entry["working"]) / count
        change = f"{100 * (cost / costs[100] - 1):+.0f} %" if 100 in costs else "–"
        seconds = short(statistics.median(entry["rounds"]))
        memory = f"{entry['peak_mib']:,.0f} MiB"
        yield f"| {count:,} | {seconds} | {short(cost)} | {change} | {short(working)} | {memory} |"


def linear(sites: list[dict[str, Any]]) -> str:
    """Return whether the cost of a site stays as it is from 100 sites to the most, and whether memory is small."""
    costs = {entry["sites"]: statistics.median(entry["rounds"]) / entry["sites"] for entry in sites}
    most = max(costs)
    change, peak = costs[most] / costs[100] - 1, max(entry["peak_mib"] for entry in sites)
    told = (
        f"The goal was a cost of a site within {100 * LINEAR:.0f} % from 100 sites to {most:,}, "
        f"{'reached' if abs(change) <= LINEAR else 'missed'}, and less than {LARGEST_MIB:,} MiB, "
        f"{'reached' if peak < LARGEST_MIB else 'missed'}."
    )
    if change > LINEAR:
        told += (
            " To show it, the server computes the mean accuracy of all sites that have answered after every reply: "
            "that grows with the square of their number."
        )
    return told


def body(part: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of a part."""
    if pairs := pairs_of(part):
        notes = list(dict.fromkeys(note for pair in pairs for note in notes_of(pair)))
        yield "\n".join(pair_rows(pairs, notes))
        if notes:
            yield "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    if "stream" in part:
        stream = part["stream"]
        yield (
            f"`first_fit` over a stream of 10,000 sites x 10 classes x 2 components of 512 dimensions, "
            f"{stream['regime']} a class: {stream['rows']:,} components became {stream['components']:,} in "
            f"{short(stream['seconds'])} s; the process took at most {stream['peak_mib']:,.0f} MiB, of which "
            f"{stream['start_mib']:,.0f} before the first site. The goal was 60 s and 2 GB."
        )
    if "runs" in part:
        yield WHOLE
        yield "\n".join(run_rows(part["runs"]))
    if "sites" in part:
        yield "\n".join(site_rows(part["sites"]))
        yield linear(part["sites"])
    if "rows" in part:
        rows = [
            f"| {what} | {short(statistics.median(seconds))} | {len(seconds)} |" for what, seconds in part["rows"]
        ]
        yield "\n".join(["| | median, seconds | repeats |", "|---|---|---|", *rows])
    if "phases" in part:
        whole = sum(part["phases"].values())
        rows = [
            f"| {PHASES[phase]} | {value:.1f} | {100 * value / whole:.0f} |"
            for phase, value in part["phases"].items()
        ]
        yield "\n".join(["| phase | ms a site | % |", "|---|---|---|", *rows])
    if "rates" in part:
        yield f"On {part['card']}, whose matrices reach {part['peak'] / 1e12:.1f} TFLOP/s:"
        rows = [
            f"| {its['work']} | {its['samples_a_second']:,.0f} | {100 * its['share_of_peak']:.2g} |"
            for its in part["rates"]
        ]
        yield "\n".join(["| a cohort of the above | samples a second | % of the peak |", "|---|---|---|", *rows])
    if "operators" in part:
        yield f"Training a cohort of {part['cohort']} with the CNN, by operator, as torch's profiler sees it:"
        rows = [f"| `{operator}` | {100 * share:.0f} |" for operator, share in part["operators"].items()]
        yield "\n".join(["| operator | % |", "|---|---|", *rows])


def machine_rows(results: Results) -> Iterator[str]:
    """Yield when each part was measured and what else the machine did then."""
    yield "| part | began (UTC) | seconds | load average before | command |"
    yield "|---|---|---|---|---|"
    for name, part in results.items():
        where = part["conditions"]
        load = " ".join(f"{value:.2f}" for value in where["load"])
        began = where["began"].replace("T", " ").removesuffix("+00:00")
        yield f"| {name} | {began} | {where['seconds']:.0f} | {load} | `{where['command']}` |"


def _machine(part: dict[str, Any]) -> str:
    """Return where a part was measured."""
    where = part["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return f"{where['cores']} cores of {where['processor']}; {versions}"


def _elsewhere(part: dict[str, Any], first: str) -> Iterator[str]:
    if (here := _machine(part)) != first:
        yield f"Measured on {here}."


def document(results: Results) -> str:
    """Return docs/performance.md: a pure function of the committed measurements."""
    first = _machine(next(iter(results.values())))
    sections = (
        ["\n\n".join([PARTS[name], *_elsewhere(part, first), *body(part)]) for name, part in results.items()]
        + [NO_GPU] * ("gpu" not in results)
        + [FLOORS.rstrip()]
    )
    return f"""# Performance

Generated from `benchmarks/results/speed.json` by `python -m benchmarks.speed table`.

Measured on {first}. Every process of every program
uses one torch thread unless the row says otherwise. The ways that are compared were run in turn, except where it says
otherwise; "times as fast" is the median over the turns of their seconds divided by this project's, with the lowest
and the highest beside it. Where the load average of a part, at the end of the page, is well above 1, other work
shared the cores, and its wall times are longer and less even than on a quiet machine.

{(chr(10) * 2).join(sections)}

## When it was measured

{chr(10).join(machine_rows(results))}
"""
