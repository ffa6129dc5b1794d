"""Tables and figures of finished and interrupted runs: pure functions of the files in a run's folder."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gfpl_flwr.report.absences import absences
from gfpl_flwr.report.reading import read_run
from gfpl_flwr.report.runs import Run
from gfpl_flwr.report.tables import comparison, csv, heads, markdown, visits

__all__ = [
    "Run",
    "absences",
    "can_draw",
    "comparison",
    "csv",
    "heads",
    "markdown",
    "read_run",
    "visits",
    "write_report",
]


def can_draw() -> bool:
    """Return whether figures can be drawn here; a device and a server have no need of matplotlib."""
    return find_spec("matplotlib") is not None


def write_report(run_dir: str | Path, others: Sequence[str | Path] = ()) -> list[Path]:
    """Write the figures of a run into its folder, replacing those of an earlier report.

    Args:
        run_dir: folder of the run.
        others: folders of runs to draw beside it, for example that of Local; they are only read.

    Returns:
        The paths written: ``accuracy.png``, ``communication.png`` and ``sites.png`` when a site reported an
        accuracy, ``labels.png`` when a site told its classes, ``merge.png`` when the server fused prototypes.

    Raises:
        ValueError: a folder is not that of a run, or a file in it is damaged.
    """
    # matplotlib takes half a second to import, and who prints a table does not need it.
    from gfpl_flwr.report import figures, site_figures

    folder = Path(run_dir)
    run = read_run(folder)
    beside = [other for other in map(read_run, others) if other.curve()]
    written = []
    if run.curve():
        drawn = [run, *beside]
        written.append(figures.accuracy(drawn, folder / "accuracy.png"))
        written.append(figures.communication(drawn, folder / "communication.png"))
        written.append(site_figures.sites(drawn, folder / "sites.png"))
    if run.labels:
        written.append(site_figures.labels(run, folder / "labels.png"))
    if run.merges:
        written.append(site_figures.merge(run, folder / "merge.png"))
    return written
