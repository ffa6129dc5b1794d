"""What a person sees while runs are under way: a progress bar on a terminal, plain lines elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gfpl_flwr.config import Scalar
from gfpl_flwr.flower.launch.phases import first_step
from gfpl_flwr.flower.progress import Progress


class Watch:
    """Shows how far each of some runs is; use as a context manager.

    Args:
        runs: how many there will be.
        console: where to write; standard error by default, so that standard output stays a table.
    """

    def __init__(self, runs: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.runs = runs
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> "Watch":
        self._bar.start()
        self._waiting = self._bar.add_task("starting", total=None, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.remove_task(self._waiting)
        self._bar.stop()

    def progress(self, flat: Mapping[str, Scalar], progress: Progress) -> None:
        """Show how far a run is.

        Args:
            flat: its configuration; ``name`` tells it from others.
            progress: visits and sites done, accuracy so far.
        """
        name = str(flat["name"])
        accuracy = "" if progress.accuracy is None else f"accuracy {100 * progress.accuracy:.1f} %"
        state = f"visit {progress.visit}/{progress.visits}  {progress.sites}/{progress.expected} sites  {accuracy}"
        if name not in self._tasks:
            self._bar.update(self._waiting, visible=False)
            self._tasks[name] = self._bar.add_task(name, total=1.0, state="")
        share = 1.0 if progress.done else progress.sites / max(1, progress.expected)
        completed = (progress.visit - 1 + share) / progress.visits
        self._bar.update(self._tasks[name], completed=completed, state=state)  # type: ignore[arg-type]
        if not self.console.is_terminal and progress.done:
            self.console.print(f"{name}: {state}", highlight=False)

    def log(self, line: str) -> None:
        """Show a line of the log that tells of a site that was left out; the rest is Flower's own business."""
        if "left out of this visit" in line:
            self._bar.console.print(line, style="yellow", highlight=False, markup=False)

    def started(self, path: Path) -> None:
        """Show how long it took until the first training step of a run that has ended, by phase.

        Args:
            path: folder of the run.
        """
        seconds = json.loads((path / "summary.json").read_text()).get("launch_seconds", {})
        if line := first_step(seconds):
            self._bar.console.print(f"{path.name}: {line}", style="dim", highlight=False, soft_wrap=True)
