"""What a person sees while an experiment goes on: one bar with the time left, and a line for each run that ends."""

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gfpl_flwr.experiments.design import Planned
from gfpl_flwr.experiments.sweep import Told


class Watching:
    """Shows how far some runs are, in local rounds; use as a context manager.

    Args:
        planned: the runs, by key.
        console: where to write.
    """

    def __init__(self, planned: Mapping[str, Planned], console: Console) -> None:
        self.planned, self.console = planned, console
        self.rounds = dict.fromkeys(planned, 0)
        self.ended = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            # Methods differ in what a round takes, and some tell of rounds only at their end: look far back.
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=1800,
        )

    def __enter__(self) -> "Watching":
        self._bar.start()
        self._task = self._bar.add_task("", total=sum(its.rounds for its in self.planned.values()))
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, told: Told) -> None:
        """Show what happened."""
        self.rounds[told.key] = max(self.rounds[told.key], told.rounds)
        if told.note:
            self._bar.console.print(told.note, style="yellow", highlight=False, markup=False, soft_wrap=True)
        if told.finished:
            self.ended += 1
            words = self.planned[told.key].words
            line = f"{self.ended}/{len(self.planned)} {words}: {told.failure or 'done'}"
            self._bar.console.print(line, style="red" if told.failure else None, highlight=False, markup=False)
        self._show()

    def _show(self) -> None:
        left = f"{self.ended}/{len(self.planned)} runs"
        self._bar.update(self._task, completed=sum(self.rounds.values()), description=left)
