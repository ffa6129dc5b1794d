"""From a request to a finished run folder: checks first, then an engine, then the truth about how it ended."""

import contextlib
import json
import logging
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.config import ConfigError, Scalar
from gfpl_flwr.flower.client import open_dataset, partition_of
from gfpl_flwr.flower.files import write_json
from gfpl_flwr.flower.inprocess import DEFAULT_SITES, run_in_process
from gfpl_flwr.flower.launch.federations import Federation, read_federations, select_federation
from gfpl_flwr.flower.launch.superlink import SuperLink, connect
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.run_folder import CONFIG, SUMMARY, RunFolder, run_path

ENGINES = ("flower", "inprocess")
FEDERATIONS = "pyproject-federation.toml"
Listener = Callable[[Mapping[str, Scalar], Progress], None]


class RunFailed(RuntimeError):
    """A run that began and failed; the message is its cause on one line."""


@dataclass(frozen=True)
class Plan:
    """Runs that are checked and ready to start.

    Attributes:
        flats: one flat configuration a run, with its name and absolute folders.
        engine: ``"flower"`` or ``"inprocess"``.
        federation: where Flower runs them; None in this process.
        app_dir: folder of the app's pyproject.toml.
    """

    flats: Sequence[Mapping[str, Scalar]]
    engine: str
    federation: Federation | None
    app_dir: Path | None


def check_engine(engine: str) -> None:
    """Raise ConfigError for an engine that does not exist."""
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine}: must be one of {', '.join(ENGINES)}")


def plan(runs: Sequence[Mapping[str, Scalar]], *, engine: str, federation: str = "") -> Plan:
    """Check everything that can be checked before anything is started.

    Args:
        runs: the options of each run that differ from the defaults.
        engine: ``"flower"`` or ``"inprocess"``.
        federation: a name in pyproject-federation.toml; empty for its default.

    Returns:
        The plan; where the data lies on this machine, it has been prepared and a partition exists.

    Raises:
        ValueError: an option, a name, a federation or a data set that cannot be used.
    """
    check_engine(engine)
    app_dir = chosen = None
    if engine == "flower":
        app_dir = find_app()
        chosen = select_federation(read_federations(app_dir / FEDERATIONS), federation)
    elif federation:
        raise ConfigError(f"a federation ({federation}) needs --engine flower")
    here = chosen is None or chosen.is_local
    sites = int(chosen.simulation.get("num_supernodes", DEFAULT_SITES)) if chosen else DEFAULT_SITES
    flats = []
    for overrides in runs:
        flat = RunFolder.saved_config(overrides) | dict(overrides)
        if here and not flat.get("num-sites"):
            flat["num-sites"] = sites
        config, algorithm = parse_run(flat)
        flat["name"] = run_path(config).name
        RunFolder.check(config, flat | {"name": flat["name"]})
        if here:
            dataset = open_dataset(config, Path(config.data_dir))
            algorithm.resolve(config, dataset.num_classes)
            if config.partition != "own":
                partition_of(config, dataset, config.num_sites)
        flats.append(flat)
    return Plan(flats, engine, chosen, app_dir)


def find_app() -> Path:
    """Return the folder of the Flower app: the current one or one above it, else that of this package's source.

    Raises:
        ConfigError: there is none; says what is looked for.
    """
    here = Path.cwd()
    for folder in [here, *here.parents, Path(__file__).parents[3]]:
        with contextlib.suppress(OSError, tomllib.TOMLDecodeError):
            document = tomllib.loads((folder / "pyproject.toml").read_text())
            if document.get("project", {}).get("name") == "gfpl-flwr":
                return folder
    raise ConfigError(f"no gfpl-flwr app in {here} or above it; --engine flower needs a checkout, inprocess does not")


def execute(plan: Plan, on_progress: Listener, on_log: Callable[[str], None]) -> Iterator[Path]:
    """Run a plan, one run after the other.

    Args:
        plan: of :func:`plan`.
        on_progress: called with a run's configuration and how far it is.
        on_log: called with every other line that Flower's ServerApp logs.

    Yields:
        The folder of each finished run.

    Raises:
        RunFailed: a run failed; those before it are complete, and its own folder keeps what was computed.
        KeyboardInterrupt: after the run under way was stopped and every process ended.
    """
    with contextlib.ExitStack() as stack:
        link: SuperLink | None = None
        if plan.federation is not None:
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gfpl-")))
            link = stack.enter_context(connect(plan.federation, work_dir=work_dir))
        for flat in plan.flats:
            if link is None or plan.app_dir is None:
                yield _in_process(flat, on_progress)
            else:
                yield _on_flower(link, plan.app_dir, flat, on_progress, on_log)


def _in_process(flat: Mapping[str, Scalar], on_progress: Listener) -> Path:
    logging.getLogger("flwr.gfpl").setLevel(logging.WARNING)  # progress is shown, not logged
    try:
        return run_in_process(flat, on_progress=lambda progress: on_progress(flat, progress)).path
    except (RuntimeError, OSError) as error:
        raise RunFailed(str(error)) from error


def _on_flower(
    link: SuperLink,
    app_dir: Path,
    flat: Mapping[str, Scalar],
    on_progress: Listener,
    on_log: Callable[[str], None],
) -> Path:
    def listen(line: str) -> None:
        progress = Progress.parse(line)
        if progress is None:
            on_log(line)
        else:
            on_progress(flat, progress)

    sites = int(flat["num-sites"]) if link.federation.is_local else None
    path = run_path(parse_run(flat)[0])
    try:
        outcome = link.run(app_dir, flat, num_sites=sites, on_log=listen)
    except KeyboardInterrupt:
        _add_to_summary(path, {"status": "interrupted", "reason": "stopped by the user"})
        raise
    ending = "failed" if outcome.status == "completed" else outcome.status  # unless the server says otherwise
    told = {"status": ending, "reason": outcome.reason, "launch_seconds": dict(link.seconds) | dict(outcome.seconds)}
    summary = _add_to_summary(path, told)
    if outcome.status != "completed":
        raise RunFailed(outcome.reason)
    if not (path / CONFIG).exists():
        raise RunFailed(f"the run completed, but {path} is not on this machine: it lies where the server runs")
    if summary["status"] != "completed":
        raise RunFailed(f"the server ended before the last visit; see {path / SUMMARY}")
    return path


def _add_to_summary(path: Path, facts: Mapping[str, object]) -> Mapping[str, object]:
    """Add to a run's summary what only the side that started it knows; a killed ServerApp wrote none."""
    summary = path / SUMMARY
    known: dict[str, object] = json.loads(summary.read_text()) if summary.exists() else {}
    whole = {**facts, **known}
    if (path / CONFIG).exists():
        write_json(summary, whole)
    return whole


def demo_runs(output_dir: Path, data_dir: Path) -> list[dict[str, Scalar]]:
    """Return the demo's two runs, GFPL and Local on digits."""
    common: dict[str, Scalar] = {
        "dataset": "digits",
        "num-sites": 8,
        "shots": 15,
        "rounds": 40,
        "gfpl.first-exchange": 20,
        "gfpl.exchange-every": 10,
        "output-dir": str(output_dir),
        "data-dir": str(data_dir),
    }
    return [common | {"algorithm": name, "name": name} for name in ("gfpl", "local")]


def clear(runs: Sequence[Mapping[str, Scalar]]) -> None:
    """Remove what earlier runs of these names left: their folders and, on this machine, their sites' models."""
    for run in runs:
        output_dir = Path(str(run["output-dir"]))
        folder = output_dir / str(run["name"])
        if (folder / CONFIG).exists():
            key = json.loads((folder / CONFIG).read_text())["key"]
            shutil.rmtree(output_dir / "site-models" / key, ignore_errors=True)
            shutil.rmtree(folder)
