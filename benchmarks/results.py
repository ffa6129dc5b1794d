"""The committed outcomes of the experiments, and docs/results.md made of them.

    gfpl table table1 --dataset MNIST --data-dir data     # does the runs that are missing in runs/tables
    python -m benchmarks.results collect                  # takes their outcomes over into benchmarks/results
    python -m benchmarks.results document                 # writes docs/results.md and its figures from these

The document is a function of the files in benchmarks/results and benchmarks/experiments alone.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from gfpl_flwr.experiments.cells import OURS, Cells, common, own
from gfpl_flwr.experiments.design import Experiment, Part, read_experiment
from gfpl_flwr.experiments.figures import figures_of
from gfpl_flwr.experiments.outcomes import Outcome, read_outcomes, write_outcomes
from gfpl_flwr.experiments.sheets import Sheet, markdown
from gfpl_flwr.experiments.spread import Interval
from gfpl_flwr.experiments.tables import sheets_of, signed, verdicts
from gfpl_flwr.report.formatting import NOTHING, human_bytes

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "benchmarks" / "experiments"
RESULTS = ROOT / "benchmarks" / "results" / "outcomes"
REPORT = ROOT / "docs" / "results.md"
IMAGES = ROOT / "docs" / "images" / "results"
ORDER = (
    "table1",
    "table1-short",
    "table2",
    "table2-short",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "fig7",
    "defaults",
)


def collect(tables: Path) -> None:
    """Take over the outcomes of the experiments below a folder of ``gfpl table``, beside those that are there."""
    for path in sorted(tables.glob("*/outcomes.jsonl")):
        name = path.parent.name
        if not (EXPERIMENTS / f"{name}.toml").exists():
            continue
        wanted = read_experiment(EXPERIMENTS / f"{name}.toml").runs()
        kept = committed(name) | {key: its for key, its in read_outcomes(path).items() if key in wanted}
        write_outcomes(RESULTS / f"{name}.jsonl", kept.values())
        print(f"{name}: {len(kept)} of {len(wanted)} runs")


def committed(name: str) -> dict[str, Outcome]:
    """Return the committed outcomes of an experiment, by key."""
    path = RESULTS / f"{name}.jsonl"
    return read_outcomes(path) if path.exists() else {}


def experiments() -> Iterator[tuple[Experiment, dict[str, Outcome]]]:
    """Yield the experiments that have a committed outcome, in the order of the document."""
    for name in ORDER:
        if found := committed(name):
            yield read_experiment(EXPERIMENTS / f"{name}.toml"), found


def document() -> str:
    """Return docs/results.md."""
    sections = [_section(experiment, outcomes) for experiment, outcomes in experiments()]
    return "\n".join([_head(), *sections])


def draw(folder: Path) -> list[Path]:
    """Write the figures of the document as PNG, and return their paths."""
    written = []
    for experiment, outcomes in experiments():
        for part in experiment.parts:
            for path in figures_of(part, outcomes, folder / experiment.name):
                if path.suffix == ".png":
                    written.append(path)
                else:
                    path.unlink()
    return written


def _head() -> str:
    every = [its for _, outcomes in experiments() for its in outcomes.values()]
    versions = every[0].versions
    hours = sum(its.seconds for its in every) / 3600
    same = "" if all(its.versions == versions for its in every) else " (some with others, see the files)"
    return f"""# Results

Generated from `benchmarks/results/outcomes` and `benchmarks/experiments` by `python -m benchmarks.results document`.
Each experiment is one command; it does the runs that are missing and can be stopped at any time.

Measured with torch {versions["torch"]}, flwr {versions["flwr"]}, Python {versions["python"]}{same}, on a processor,
one thread a run: {len(every)} runs, {hours:.0f} hours of a core that other work shared.

**Protocol**, the same for every method: FedProto's n-way k-shot (20 sites, n classes ± the spread a site, about 100
samples a class, 92 with FEMNIST), SGD with learning rate 0.01 and momentum 0.5 that begins at zero in each round, one
local epoch a round, batches of 4 (CNN, 50-dimensional features) or 32 (ResNet-18), every site in every round, each
tested on test images of its own classes. FEMNIST is that of 28 x 28 pixels, so it has the network of MNIST. Accuracy
is the unweighted mean over sites, of the classifier of the model that a site would use after the last round: the one
that the server handed down last, where a method hands down models. Intervals are Student's, 95 %, over seeds; a seed
determines data, sites, initial model and every other random number, so methods are compared seed by seed.

**The paper's numbers** stand beside ours where they could be checked. Its Table 1 repeats FedProto's table for the
older methods (on CIFAR-10 less exactly 12.00), and FedProto's published deviations come of a counter that was never
reset; take it for a direction, not for a target.
"""


def _section(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> str:
    wanted = experiment.runs()
    done = sum(key in outcomes for key in wanted)
    command = f"gfpl table {experiment.name} --data-dir data"
    missing = "" if done == len(wanted) else f" {done} of its {len(wanted)} runs are done."
    lines = [f"## {experiment.title}", "", f"{experiment.source}. `{command}`.{missing}", ""]
    for part in experiment.parts:
        if any(its.key in outcomes for its in part.planned):
            lines += _part(experiment, part, outcomes)
    return "\n".join(lines)


def _part(experiment: Experiment, part: Part, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    sheets = [sheet for sheet in sheets_of(part, outcomes) if any(NOTHING not in row[1:] for row in sheet.rows)]
    for sheet in sheets:
        yield markdown(sheet)
    for page in part.pages:
        cells = Cells(part, page, outcomes)
        if part.show == "methods" and any(its.key in outcomes for its in cells.on_page()):
            yield from _where_it_wins(cells)
    drawn = sorted((IMAGES / experiment.name).glob(f"{part.name}-*.png"))
    for path in drawn:
        yield f"![{part.title}: {path.stem}]({path.relative_to(REPORT.parent)})"
    yield ""


def _where_it_wins(cells: Cells) -> Iterator[str]:
    """Yield GFPL's differences to the other methods, and what they come to in words."""
    found: dict[str, dict[str, Interval]] = {}
    for page, column, method, gap in verdicts(cells.part, cells.outcomes):
        if page == ", ".join(cells.page.values()):
            found.setdefault(method, {})[column] = gap
    columns = cells.of("columns")
    rows = [[method, *(signed(gaps[column]) for column in columns)] for method, gaps in found.items()]
    where = ", ".join(cells.page.values())
    notes = ["Points on own classes, seed by seed: mean ± half the 95 % interval; + where GFPL is better."]
    yield markdown(Sheet("gap", f"GFPL less each method, {where}", ["method", *columns], rows, notes))
    words = {1: "ahead of", -1: "behind", 0: "not to be told from"}
    told = []
    for sign, verb in words.items():
        named = []
        for method, gaps in found.items():
            at = [column for column in columns if gaps[column].count and gaps[column].sign == sign]
            if at:
                named.append(method if len(at) == len(columns) else f"{method} ({', '.join(at)})")
        if named:
            told.append(f"{verb} {', '.join(named)}")
    yield f"On {where} {OURS} is {'; '.join(told)}.\n"


def readme_rows() -> Iterator[str]:
    """Yield the short table of the README: accuracy on own and on unseen classes, and what a site sends and gets."""
    outcomes = committed("table1")
    part = read_experiment(EXPERIMENTS / "table1.toml").parts[0]
    pages = [page for page in part.pages if any(its.key in outcomes for its in Cells(part, page, outcomes).on_page())]
    names = [", ".join(page.values()) for page in pages]
    yield "| method | " + " | ".join(f"{name}: own | unseen | up + down a site" for name in names) + " |"
    yield "|---|" + "---:|" * (3 * len(pages))
    for row in part.axes["method"]:
        told = [row]
        for page in pages:
            cells = Cells(part, page, outcomes)
            where = {"rows": row, "columns": "n = 4"}
            mean, unseen = cells.interval(own, **where), cells.interval(common("unseen"), **where)
            sent = cells.interval(lambda its: (its.up[0] + its.down[0]) / len(its.by_site), **where)
            told += [f"{mean.mean:.1f} ± {mean.half:.1f}", f"{unseen.mean:.0f}", human_bytes(sent.mean)]
        yield "| " + " | ".join(told) + " |"


def main() -> None:
    """Collect outcomes, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collector = commands.add_parser("collect", help="take over outcomes")
    collector.add_argument("tables", type=Path, nargs="?", default=Path("runs/tables"), help="folder of gfpl table")
    commands.add_parser("document", help="write docs/results.md and its figures")
    commands.add_parser("readme", help="print the table of the README")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.tables)
    elif arguments.command == "readme":
        print("\n".join(readme_rows()))
    else:
        draw(IMAGES)
        REPORT.write_text(document())


if __name__ == "__main__":
    main()
