"""The committed outcomes of the experiments, and docs/results.md made of them.

    gfpl table table1 --dataset MNIST --data-dir data     # does the runs that are missing in runs/tables
    python -m benchmarks.results collect table1           # takes their outcomes over into benchmarks/results/outcomes
    python -m benchmarks.results document                 # writes docs/results.md and its figures from these

The document is a function of the files in benchmarks/results/outcomes and benchmarks/experiments alone.
"""

import argparse
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results_text import HEAD, REMARKS, UNKNOWN
from gfpl_flwr.experiments.cells import OURS, Cells, Measure, common, own, sent, trained
from gfpl_flwr.experiments.design import Experiment, Part
from gfpl_flwr.experiments.experiment_file import read_experiment
from gfpl_flwr.experiments.figures import figures_of
from gfpl_flwr.experiments.outcomes import Outcome, read_outcomes, write_outcomes
from gfpl_flwr.experiments.sheets import Sheet, markdown
from gfpl_flwr.experiments.spread import Interval
from gfpl_flwr.experiments.sweep import Place, finished
from gfpl_flwr.experiments.tables import most_seeds, plain, sheets_of, told_seeds, verdicts
from gfpl_flwr.report.formatting import NOTHING, human_bytes

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "benchmarks" / "experiments"
RESULTS = ROOT / "benchmarks" / "results" / "outcomes"
REPORT = ROOT / "docs" / "results.md"
IMAGES = ROOT / "docs" / "images" / "results"
ENOUGH = 3
"""Seeds that a difference is over before anything is said of it."""
ORDER = ("table1", "table1-cnn", "table2", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "defaults")


def collect(tables: Path, names: Sequence[str], *, drop: bool) -> None:
    """Take over the outcomes of the finished runs of ``gfpl table`` that are not there yet.

    A run has one outcome, in whatever experiments it stands: the one that was committed first.

    Args:
        tables: its ``--output-dir``. A run counts for every experiment that has it.
        names: of the experiments.
        drop: leave out committed outcomes of runs that no experiment has any more.

    Raises:
        SystemExit: there are some, and they are not to be left out.
    """
    place = Place(tables / "runs", Path("data"))
    wanted = {name: read_experiment(EXPERIMENTS / f"{name}.toml").runs() for name in ORDER}
    planned = {key: its for name in reversed(ORDER) for key, its in wanted[name].items()}
    kept = stored()
    if (gone := len(kept.keys() - planned.keys())) and not drop:
        raise SystemExit(
            f"{gone} of {len(kept)} committed outcomes are of no run that an experiment still has, since it or an "
            "option's default changed: --drop leaves them out"
        )
    for name in names:
        # What is reported stays: who could take the better of two runs would do so sooner or later.
        kept = finished(wanted[name], place, print) | kept
        print(f"{name}: {len(wanted[name].keys() & kept.keys())} of {len(wanted[name])} runs")
    files: dict[str, list[Outcome]] = {}
    for key, its in kept.items():
        if key in planned:
            # Where data and results lay on the machine that measured is no part of the command, and one experiment
            # may name an option that another leaves at its default.
            command = re.sub(r" --(data|output)-dir \S+", "", its.command)
            method_and_data = key.rpartition("-")[0]
            files.setdefault(method_and_data, []).append(replace(its, command=command, options=planned[key].options))
    for stem, outcomes in files.items():
        write_outcomes(RESULTS / f"{stem}.jsonl", outcomes)
    for path in RESULTS.glob("*.jsonl"):
        if path.stem not in files:
            path.unlink()


def stored() -> dict[str, Outcome]:
    """Return all committed outcomes, by key; each stands once, in the file of its method and data set."""
    return {key: its for path in sorted(RESULTS.glob("*.jsonl")) for key, its in read_outcomes(path).items()}


def committed(name: str) -> dict[str, Outcome]:
    """Return the committed outcomes of an experiment, by key."""
    return _its(read_experiment(EXPERIMENTS / f"{name}.toml"), stored())


def experiments() -> Iterator[tuple[Experiment, dict[str, Outcome]]]:
    """Yield the experiments that have a committed outcome, in the order of the document."""
    every = stored()
    for name in ORDER:
        experiment = read_experiment(EXPERIMENTS / f"{name}.toml")
        if found := _its(experiment, every):
            yield experiment, found


def _its(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    wanted = experiment.runs()
    return {key: its for key, its in outcomes.items() if key in wanted}


def document() -> str:
    """Return docs/results.md."""
    sections = [_section(experiment, outcomes) for experiment, outcomes in experiments()]
    return "\n".join([_head(), *sections])


def draw(folder: Path) -> list[Path]:
    """Write the figures of the document as PNG in place of those that are there, and return their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    written = []
    for experiment, outcomes in experiments():
        (folder / experiment.name).mkdir(parents=True)
        for part in experiment.parts:
            for path in figures_of(part, outcomes, folder / experiment.name):
                if path.suffix == ".png":
                    written.append(path)
                else:
                    path.unlink()
    return written


def _head() -> str:
    every = list(stored().values())
    versions = every[0].versions
    hours = sum(its.seconds for its in every) / 3600
    packages = ("torch", "flwr", "python")
    same = all(its.versions[name] == versions[name] for its in every for name in packages)
    others = "" if same else " (some with others, see the files)"
    where = "processors and GPUs" if any("gpu" in its.versions for its in every) else "a processor"
    told = sum("sources" in its.versions for its in every)
    unknown = "" if told == len(every) else UNKNOWN.format(told=told)
    return HEAD.format(
        **{name: versions[name] for name in packages},
        others=others,
        where=where,
        runs=len(every),
        hours=hours,
        unknown=unknown,
    )


def _section(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> str:
    wanted = experiment.runs()
    done = sum(key in outcomes for key in wanted)
    command = f"gfpl table {experiment.name} --data-dir data"
    missing = "" if done == len(wanted) else f" {done} of its {len(wanted)} runs are done."
    lines = [f"## {experiment.title}", "", f"{experiment.source}. `{command}`.{missing}", ""]
    if remark := REMARKS.get(experiment.name):
        lines += [remark, ""]
    for part in experiment.parts:
        if any(its.key in outcomes for its in part.planned):
            lines += _part(experiment, part, outcomes)
    return "\n".join(lines)


def _part(experiment: Experiment, part: Part, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield from map(markdown, sheets_of(part, outcomes))
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if part.show in ("methods", "variants"):
            yield from _where_it_wins(cells, own, "less each", "")
        if part.show == "methods":
            told = ", each after its last local training, before a site takes over what is handed down last"
            yield from _where_it_wins(cells, trained, "less each after local training", told)
    drawn = sorted((IMAGES / experiment.name).glob(f"{part.name}-*.png"))
    for path in drawn:
        yield f"![{part.title}: {path.stem}]({path.relative_to(REPORT.parent)})"
    yield ""


def _where_it_wins(cells: Cells, theirs: Measure, what: str, told: str) -> Iterator[str]:
    """Yield GFPL's differences to the other rows, and what they come to in words.

    Args:
        cells: of a page.
        theirs: the accuracy of the other rows.
        what, told: of it, in the title of the table and in a sentence.
    """
    found: dict[str, dict[str, Interval]] = {}
    for page, column, row, gap in verdicts(cells.part, cells.outcomes, theirs):
        if page == cells.where and gap.count:
            found.setdefault(row, {})[column] = gap
    if not found:
        return
    columns = cells.of("columns")
    missing = Interval(math.nan, None, 0)
    counts = [gap.count for gaps in found.values() for gap in gaps.values()]
    rows = [
        [row, *(plain(gaps.get(column, missing), most=max(counts), sign="+") for column in columns)]
        for row, gaps in found.items()
    ]
    notes = [f"Points on own classes, seed by seed; + where GFPL is better. {told_seeds(counts)}"]
    title = f"{OURS} {what}" + (f", {cells.where}" if cells.page else "")
    yield markdown(Sheet("gap", title, [cells.part.roles["rows"], *columns], rows, notes))
    clauses = [
        f"{verb} {named}"
        for sign, verb in {1: "ahead of", -1: "behind", 0: "not to be told from"}.items()
        if (named := _named(found, columns, lambda gap, sign=sign: gap.count >= ENOUGH and gap.sign == sign))
    ]
    where = f"On {cells.where} " if cells.page else ""
    if clauses:
        yield f"{where}{OURS} is {'; '.join(clauses)}{told}.\n"
    if few := _named(found, columns, lambda gap: gap.count < ENOUGH):
        yield f"Of fewer than {ENOUGH} seeds nothing follows: {few}.\n"


def _named(found: Mapping[str, Mapping[str, Interval]], columns: Sequence[str], wanted: Callable[..., bool]) -> str:
    """Return the rows with such a difference, and the columns in which they have it unless it is all of them."""
    named = []
    for row, gaps in found.items():
        at = [column for column, gap in gaps.items() if wanted(gap)]
        if at:
            named.append(row if len(at) == len(columns) else f"{row} ({', '.join(at)})")
    return ", ".join(named)


def readme_rows() -> Iterator[str]:
    """Yield the short table of the README: accuracy on own and on unseen classes, and what a site sends and gets."""
    outcomes = committed("table1")
    (part,) = read_experiment(EXPERIMENTS / "table1.toml").parts
    pages = [cells for page in part.pages if not (cells := Cells(part, page, outcomes)).empty]
    heads = [f"{cells.where}: {what}" for cells in pages for what in ("own", "unseen", "up + down a site")]
    yield "| method | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for row in part.axes["method"]:
        words = [row]
        for cells in pages:
            where, most = {"rows": row, "columns": cells.middle}, most_seeds(cells, [cells.middle])
            sites = cells.interval(_sent_a_site, **where)
            words.append(plain(cells.interval(own, **where), 1, most=most))
            words.append(plain(cells.interval(common("unseen"), **where), 0, most=most))
            words.append(human_bytes(sites.mean) if sites.count else NOTHING)
        yield "| " + " | ".join(words) + " |"


def _sent_a_site(outcome: Outcome) -> float:
    return sent(outcome) / len(outcome.by_site)


def main() -> None:
    """Collect outcomes, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collector = commands.add_parser("collect", help="take over outcomes")
    collector.add_argument("names", nargs="+", choices=ORDER, metavar="NAME", help="experiments to take over")
    collector.add_argument("--tables", type=Path, default=Path("runs/tables"), help="folder of gfpl table")
    collector.add_argument("--drop", action="store_true", help="leave out outcomes of runs that are no longer wanted")
    commands.add_parser("document", help="write docs/results.md and its figures")
    commands.add_parser("readme", help="print the table of the README")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.tables, arguments.names, drop=arguments.drop)
    elif arguments.command == "readme":
        print("\n".join(readme_rows()))
    else:
        draw(IMAGES)
        REPORT.write_text(document())


if __name__ == "__main__":
    main()
