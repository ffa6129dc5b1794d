"""The ``gfpl`` command. Everything heavy is imported inside the command that needs it: ``--help`` answers at once."""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from gfpl_flwr import cli_devices
from gfpl_flwr.command_line import ConfigOption, DataOption, assignments, one_line_errors, options_of

if TYPE_CHECKING:
    from gfpl_flwr.config import Scalar
    from gfpl_flwr.flower.progress import Progress

app = typer.Typer(
    help="Generative Federated Prototype Learning on Flower: run, watch and report federations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (cli_devices.doctor, cli_devices.rehearse, cli_devices.register, cli_devices.nodes):
    app.command()(command)


@app.command()
def run(
    federation: Annotated[str, typer.Argument(help="A federation of pyproject-federation.toml.")] = "",
    engine: Annotated[str, typer.Option(help="flower: Flower's engines; inprocess: no Ray, no server.")] = "flower",
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="Name of the run's folder; empty: made from algorithm and time.")] = "",
    resume: Annotated[str, typer.Option(metavar="NAME", help="Continue this run after its last checkpoint.")] = "",
    output_dir: Annotated[Path | None, typer.Option(help="Where run folders are made; runs by default.")] = None,
    data_dir: DataOption = None,
) -> None:
    """Run one federation to its end, and report it."""
    with one_line_errors():
        overrides = options_of(config, output_dir=output_dir, data_dir=data_dir)
        if name and resume:
            raise ValueError(f"--name {name} --resume {resume}: a run that is continued has its name")
        if name or resume:
            overrides["name"] = name or resume
        if resume:
            overrides["resume"] = True
        _print_report(_execute([overrides], engine=engine, federation=federation))


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the demo's runs are written.")] = Path("runs/demo"),
    data_dir: DataOption = None,
    engine: Annotated[str, typer.Option(help="flower or inprocess.")] = "flower",
) -> None:
    """Run GFPL and Local on scikit-learn's digits through Flower's simulation engine, and compare them."""
    from gfpl_flwr.flower.launch.place import demo_runs

    with one_line_errors():
        runs = demo_runs(output_dir.resolve(), (data_dir or Path("data")).expanduser().resolve())
        _print_report(_execute(runs, engine=engine, federation="", afresh=True))


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or interrupted.")],
    visits: Annotated[bool, typer.Option("--visits", help="One row for every visit of the first run.")] = False,
    output_format: Annotated[str, typer.Option("--format", help="table, markdown or csv.")] = "table",
) -> None:
    """Print the table of some runs and draw their figures."""
    with one_line_errors():
        _print_report(run_dirs, visits=visits, output_format=output_format)


@app.command()
def data(
    config: ConfigOption = None,
    data_dir: DataOption = None,
    num_sites: Annotated[int, typer.Option(help="Sites to spread it over.")] = 20,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only prepare it.")] = False,
) -> None:
    """Prepare a data set, and show which site would hold what."""
    from rich.console import Console
    from rich.table import Table

    from gfpl_flwr.algorithms import parse_run
    from gfpl_flwr.data.sites import label_counts
    from gfpl_flwr.flower.site_setup import open_dataset, partition_of

    with one_line_errors():
        options, _ = parse_run(options_of(config, output_dir=None, data_dir=data_dir))
        dataset = open_dataset(options, Path(options.data_dir))
        if quiet:
            return
        table = Table(
            "site",
            "train",
            "test",
            "training samples by class",
            title=f"{options.dataset}, {options.partition}",
        )
        for site, rows in enumerate(partition_of(options, dataset, num_sites)):
            counts = label_counts(dataset.train_labels.numpy(), rows.train, dataset.num_classes)
            held = "  ".join(f"{label}:{count}" for label, count in enumerate(counts.tolist()) if count)
            table.add_row(str(site), str(len(rows.train)), str(len(rows.test)), held)
        Console().print(table)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="An experiment, or the path of its TOML file; none: list them.")] = "",
    dataset: Annotated[list[str] | None, typer.Option(help="Only these values of the axis dataset.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=VALUE", help="Only these values of an axis, seed or part.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, from the first.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Local rounds of every run; T0 in proportion.")] = None,
    config: ConfigOption = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time; 0: one a core, or one on a GPU.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output_dir: Annotated[Path, typer.Option(help="Where runs, tables and figures are written.")] = Path(
        "runs/tables"
    ),
    data_dir: DataOption = None,
    dry: Annotated[bool, typer.Option("--dry", help="Say what is missing and run nothing.")] = False,
) -> None:
    """Do the missing runs of an experiment, print its tables and draw its figures."""
    from gfpl_flwr.experiments.command import Wish, choices, list_experiments, make

    with one_line_errors():
        if not name:
            list_experiments()
            return
        wish = Wish(
            name=name,
            chosen=choices([*(only or ()), *(f"dataset={value}" for value in dataset or ())]),
            seeds=seeds,
            rounds=rounds,
            changes=dict(assignments(config or [])),
            jobs=jobs,
            device=device,
            output_dir=output_dir.expanduser().resolve(),
            data_dir=(data_dir or Path("data")).expanduser().resolve(),
        )
        missing = make(wish, dry=dry)
    if missing:
        typer.secho(f"{missing} runs failed, see above; the same command tries them again", err=True, fg="red")
        raise typer.Exit(1)


@app.command(name="config")
def show_config() -> None:
    """List every option with its default and meaning."""
    from rich.console import Console
    from rich.table import Table

    from gfpl_flwr.algorithms import known_fields

    table = Table("key", "default", "meaning", show_edge=False)
    for key, field in known_fields().items():
        table.add_row(key, repr(field.default), field.metadata["help"])
    Console().print(table)


def main() -> None:
    """Entry point of the ``gfpl`` script."""
    from gfpl_flwr.flower.marks import born

    os.environ.setdefault("GFPL_COMMAND", " ".join(["gfpl", *sys.argv[1:]]))
    app(obj=born())


def _execute(runs: "list[dict[str, Scalar]]", *, engine: str, federation: str, afresh: bool = False) -> list[Path]:
    """Run with a progress bar; an interrupted or failed run still leaves its folder and the path to it."""
    import click

    from gfpl_flwr.flower.launch.place import choose, opened
    from gfpl_flwr.watch import Watch

    place = choose(engine, federation)
    with Watch(len(runs)) as watch, opened(place) as link:
        # torch takes seconds to import, and so does a SuperLink to start: both at once.
        from gfpl_flwr.flower.launch.runner import clear, execute, plan
        from gfpl_flwr.report import can_draw

        if afresh:
            clear(runs)
        ready = plan(runs, engine=engine, federation=federation, begun=click.get_current_context().obj)

        def progress(flat: "Mapping[str, Scalar]", now: "Progress") -> None:
            watch.progress(flat, now)
            if now.done and now.visit == now.visits and can_draw():
                # The figures' imports take a second, in which Ray ends anyway.
                Thread(target=import_module, args=("gfpl_flwr.report.site_figures",), daemon=True).start()

        done = []
        for path in execute(ready, progress, watch.log, link=link):
            watch.started(path)
            done.append(path)
        return done


def _print_report(run_dirs: list[Path], *, visits: bool = False, output_format: str = "table") -> None:
    from rich.console import Console

    from gfpl_flwr import report as reports

    runs = [reports.read_run(path) for path in run_dirs]
    tables = {"markdown": reports.markdown, "csv": reports.csv}
    if output_format in tables:
        typer.echo(tables[output_format](runs))
    elif output_format == "table":
        console = Console()
        console.print(reports.visits(runs[0]) if visits else reports.comparison(runs))
        for line in reports.absences(runs):
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    else:
        raise ValueError(f"--format {output_format}: must be table, markdown or csv")
    if not reports.can_draw():
        typer.echo("no figures: matplotlib is not installed here; `gfpl report` draws them where it is", err=True)
        return
    for path in reports.write_report(run_dirs[0], run_dirs[1:]):
        typer.echo(f"wrote {path}", err=output_format != "table")
