"""What ``gfpl table`` does: find the experiment, do what is missing, print tables, draw figures."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.config import Scalar
from gfpl_flwr.experiments.design import Experiment, ExperimentError, Planned
from gfpl_flwr.experiments.experiment_file import read_experiment
from gfpl_flwr.experiments.outcomes import Outcome, read_outcomes, write_outcomes
from gfpl_flwr.experiments.sheets import latex, markdown, rich_table
from gfpl_flwr.experiments.sweep import Place, finished, sweep
from gfpl_flwr.experiments.tables import long_csv, sheets_of
from gfpl_flwr.experiments.watching import Watching
from gfpl_flwr.flower.launch.place import find_app
from gfpl_flwr.flower.site_setup import PARTITIONED_BY, open_dataset, partition_of, pick_device

FOLDER = Path("benchmarks", "experiments")


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        name: of an experiment, or the path of its file.
        chosen: values wanted of an axis, or of ``part``.
        seeds: how many; None for all.
        rounds: local rounds; None for the experiment's own.
        changes: options of every run.
        jobs: runs at a time; 0 for as many as the machine is good for.
        device: ``auto``, ``cpu`` or ``cuda``.
        output_dir, data_dir: absolute.
    """

    name: str
    chosen: Mapping[str, Sequence[str]]
    seeds: int | None
    rounds: int | None
    changes: Mapping[str, Scalar]
    jobs: int
    device: str
    output_dir: Path
    data_dir: Path


def choices(words: Sequence[str]) -> dict[str, list[str]]:
    """Read ``axis=value`` words; several of one axis are several values.

    Raises:
        ExperimentError: a word that is none.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        axis, equals, value = word.partition("=")
        if not axis or not equals or not value:
            raise ExperimentError(f"--only {word}: must be AXIS=VALUE")
        found.setdefault(axis, []).append(value)
    return found


def known() -> dict[str, Path]:
    """Return the experiments of the checkout, by name.

    Raises:
        ConfigError: there is no checkout here.
    """
    return {path.stem: path for path in sorted((find_app() / FOLDER).glob("*.toml"))}


def find(name: str) -> Experiment:
    """Return an experiment by name or path.

    Raises:
        ExperimentError: there is none of that name; lists those there are.
    """
    if name.endswith(".toml"):
        return read_experiment(Path(name).expanduser())
    experiments = known()
    if name not in experiments:
        raise ExperimentError(
            f"unknown experiment {name!r}: known are {', '.join(experiments)}, or the path of a .toml"
        )
    return read_experiment(experiments[name])


def list_experiments(console: Console | None = None) -> None:
    """Print the experiments there are."""
    table = Table("experiment", "runs", "what", show_edge=False)
    for name, path in known().items():
        experiment = read_experiment(path)
        table.add_row(name, str(len(experiment.runs())), f"{experiment.title} · {experiment.source}")
    (console or Console()).print(table)


def make(wish: Wish, *, dry: bool = False) -> int:
    """Do the missing runs that are wanted; print their tables, and write those of all that is done.

    Returns:
        How many of the wanted runs are still missing, because they failed.

    Raises:
        ValueError: an experiment, option or data set that cannot be used, before anything is run.
        SweepError: the disk is full, or a worker process died.
    """
    whole = find(wish.name).with_changes(rounds=wish.rounds, changes=wish.changes)
    wanted = whole.only(wish.chosen, seeds=wish.seeds)
    whole.check_names(wanted)
    planned, console = wanted.runs(), Console(stderr=True)
    command = os.environ.get("GFPL_COMMAND", f"gfpl table {wish.name}")
    place = Place(wish.output_dir / "runs", wish.data_dir, wish.device, command)
    check(planned, wish.data_dir)
    done = finished(planned, place, lambda line: console.print(line, style="yellow", highlight=False))
    missing = {key: its for key, its in planned.items() if key not in done}
    console.print(f"{whole.name}: {len(planned)} runs, {len(done)} done, {len(missing)} to do", highlight=False)
    if dry:
        for key, its in missing.items():
            console.print(f"{key}: {its.words}", highlight=False)
        return 0
    if missing:
        with Watching(missing, console) as watching:
            for told in sweep(missing, place, jobs=wish.jobs or _jobs(wish.device)):
                watching.tell(told)
        done = finished(planned, place, lambda line: console.print(line, style="yellow", highlight=False))
    if done:
        for part in wanted.parts:
            for sheet in sheets_of(part, done):
                Console().print(rich_table(sheet))
        write(whole, done, wish.output_dir / whole.name)
    return len(planned) - len(done)


def check(planned: Mapping[str, Planned], data_dir: Path) -> None:
    """Open every data set and cut every partition: what is wrong with them is said before anything is run."""
    seen = set()
    for its in planned.values():
        config, algorithm = parse_run(its.options)
        dataset = open_dataset(config, data_dir)
        algorithm.resolve(config, dataset.num_classes)
        cut = tuple(getattr(config, name) for name in ("dataset", "num_sites", *PARTITIONED_BY))
        if cut not in seen:
            seen.add(cut)
            partition_of(config, dataset, config.num_sites or 20)


def write(experiment: Experiment, done: Mapping[str, Outcome], folder: Path) -> None:
    """Write outcomes beside those that are there, and tables and figures of all of them."""
    from gfpl_flwr.experiments.figures import figures_of

    out = Console(stderr=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "outcomes.jsonl"
    wanted = experiment.runs()
    before = {}
    try:
        before = read_outcomes(path) if path.exists() else {}
    except ValueError as error:
        # Nothing is lost but outcomes whose run folders are gone; what is wanted now was read from its folders.
        aside = path.replace(path.with_suffix(".damaged"))
        out.print(f"{error}; it is kept as {aside}", style="yellow", highlight=False, soft_wrap=True)
    done = {key: its for key, its in before.items() if key in wanted} | dict(done)
    write_outcomes(path, done.values())
    for part in experiment.parts:
        sheets = list(sheets_of(part, done))
        if not any(its.key in done for its in part.planned):
            continue
        (folder / f"{part.name}.md").write_text("\n".join(map(markdown, sheets)))
        (folder / f"{part.name}.tex").write_text("\n".join(map(latex, sheets)))
        (folder / f"{part.name}.csv").write_text(long_csv(part, done))
        for drawn in figures_of(part, done, folder):
            out.print(f"wrote {drawn}", highlight=False, soft_wrap=True)
    out.print(f"wrote {folder}/*.md, *.tex, *.csv, outcomes.jsonl", highlight=False, soft_wrap=True)


def _jobs(device: str) -> int:
    return (os.cpu_count() or 1) if pick_device(device).type == "cpu" else 1
