"""From a request to a finished run folder: checks first, then an engine, then the truth about how it ended."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.config import Scalar
from gfpl_flwr.flower.files import write_json
from gfpl_flwr.flower.inprocess import DEFAULT_SITES, run_in_process
from gfpl_flwr.flower.launch.place import Place, choose, opened
from gfpl_flwr.flower.launch.superlink import SuperLink
from gfpl_flwr.flower.progress import Progress
from gfpl_flwr.flower.run_folder import CONFIG, SUMMARY, RunFolder, run_path
from gfpl_flwr.flower.site_setup import open_dataset, partition_of

Listener = Callable[[Mapping[str, Scalar], Progress], None]


class RunFailed(RuntimeError):
    """A run that began and failed; the message is its cause on one line."""


@dataclass(frozen=True)
class Plan:
    """Runs that are checked and ready to start.

    Attributes:
        flats: one flat configuration a run, with its name and absolute folders.
        place: where they happen.
        seconds: wall time that the checks took.
    """

    flats: Sequence[Mapping[str, Scalar]]
    place: Place
    seconds: float


def plan(
    runs: Sequence[Mapping[str, Scalar]], *, engine: str, federation: str = "", begun: float | None = None
) -> Plan:
    """Check everything that can be checked before anything is submitted.

    Args:
        runs: the options of each run that differ from the defaults.
        engine: ``"flower"`` or ``"inprocess"``.
        federation: a name in pyproject-federation.toml; empty for its default.
        begun: when the user asked for the runs, in seconds since the epoch; now, if it is not given.

    Returns:
        The plan; where the data lies on this machine, it has been prepared and a partition exists.

    Raises:
        ValueError: an option, a name, a federation or a data set that cannot be used.
    """
    begun = time.time() if begun is None else begun
    place = choose(engine, federation)
    chosen = place.federation
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
    return Plan(flats, place, time.time() - begun)


def execute(
    plan: Plan, on_progress: Listener, on_log: Callable[[str], None], *, link: SuperLink | None = None
) -> Iterator[Path]:
    """Run a plan, one run after the other.

    Args:
        plan: of :func:`plan`.
        on_progress: called with a run's configuration and how far it is.
        on_log: called with every other line that Flower's ServerApp logs.
        link: the place's SuperLink, where it is open already; it is opened, and closed, otherwise.

    Yields:
        The folder of each finished run.

    Raises:
        RunFailed: a run failed; those before it are complete, and its own folder keeps what was computed.
        KeyboardInterrupt: after the run under way was stopped and every process ended.
    """
    # The first run waited for the checks and the SuperLink, the others did not.
    before = {"checks": plan.seconds}
    with contextlib.ExitStack() as stack:
        if link is None:
            link = stack.enter_context(opened(plan.place))
        for flat in plan.flats:
            if link is None or plan.place.app_dir is None:
                yield _in_process(flat, before, on_progress)
            else:
                yield _on_flower(link, plan.place.app_dir, flat, before, on_progress, on_log)
                link.seconds.pop("superlink", None)
            before = {}


def _in_process(flat: Mapping[str, Scalar], before: Mapping[str, float], on_progress: Listener) -> Path:
    logging.getLogger("flwr.gfpl").setLevel(logging.WARNING)  # progress is shown, not logged
    try:
        path = run_in_process(flat, on_progress=lambda progress: on_progress(flat, progress)).path
    except (RuntimeError, OSError) as error:
        raise RunFailed(str(error)) from error
    _add_to_summary(path, {"launch_seconds": before})
    return path


def _on_flower(
    link: SuperLink,
    app_dir: Path,
    flat: Mapping[str, Scalar],
    before: Mapping[str, float],
    on_progress: Listener,
    on_log: Callable[[str], None],
) -> Path:
    def listen(line: str) -> None:
        progress = Progress.parse(line)
        if progress is None:
            on_log(line)
        else:
            on_progress(flat, progress)

    config, _ = parse_run(flat)
    nodes = config.num_nodes if link.federation.is_local else None
    path = run_path(config)
    try:
        outcome = link.run(app_dir, flat, num_sites=nodes, on_log=listen)
    except KeyboardInterrupt:
        _add_to_summary(path, {"status": "interrupted", "reason": "stopped by the user"})
        raise
    ending = "failed" if outcome.status == "completed" else outcome.status  # unless the server says otherwise
    seconds = {**before, **link.seconds, **outcome.seconds}
    told = {"status": ending, "reason": outcome.reason, "launch_seconds": seconds}
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


def clear(runs: Sequence[Mapping[str, Scalar]]) -> None:
    """Remove what earlier runs of these names left: their folders and, on this machine, their sites' models."""
    for run in runs:
        output_dir = Path(str(run["output-dir"]))
        folder = output_dir / str(run["name"])
        if (folder / CONFIG).exists():
            key = json.loads((folder / CONFIG).read_text())["key"]
            shutil.rmtree(output_dir / "site-models" / key, ignore_errors=True)
            shutil.rmtree(folder)
