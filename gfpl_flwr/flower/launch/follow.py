"""Watch a submitted run until its end, and stop it when the watching is interrupted."""

import contextlib
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gfpl_flwr.flower.launch.failure import plain
from gfpl_flwr.flower.launch.local_superlink import LaunchError

if TYPE_CHECKING:
    from gfpl_flwr.flower.launch.control import Control, RunState

POLL_SECONDS = 0.3
ASK_SECONDS = 2.0
"""Between two questions for the state. The end of the log tells the end of the run at once."""
LOST_SECONDS = 60.0
"""How long a SuperLink may be silent; the run goes on without us meanwhile."""
_TAIL_LINES = 2000


def follow(
    control: "Control",
    run_id: int,
    *,
    log_file: Path,
    check_alive: Callable[[], None],
    on_log: Callable[[str], None],
    on_poll: Callable[[], None],
) -> "tuple[RunState, str]":
    """Watch a run until it is finished. If anything but the loss of its SuperLink is raised meanwhile, it is stopped.

    Args:
        control: of its SuperLink.
        run_id: of the run.
        log_file: its log is added to this file.
        check_alive: raises if the SuperLink is known to have ended.
        on_log: called with each line of the log, without colours.
        on_poll: called about three times a second.

    Returns:
        The final state, and the last lines of the log.

    Raises:
        LaunchError: the SuperLink has ended, or has not answered for a minute.
    """
    reader = _LogReader(control, run_id)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with log_file.open("a", encoding="utf-8") as file:

        def drain() -> None:
            for line in reader.lines():
                tail.append(line)
                file.write(f"{line}\n")
                on_log(line)
            file.flush()

        try:
            state = _wait(control, run_id, reader, drain, check_alive, on_poll)
            reader.ended.wait(ASK_SECONDS)
            drain()
        except LaunchError:  # a SuperLink that is back just now has a run that goes on
            raise
        except BaseException:
            with deaf_to_interrupts(), contextlib.suppress(LaunchError):
                control.stop(run_id)
                reader.ended.wait(ASK_SECONDS)
            raise
        finally:
            reader.stop()
    return state, "\n".join(tail)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Let a second Ctrl-C not leave processes behind; what is done within is bounded in time."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(
    control: "Control",
    run_id: int,
    reader: "_LogReader",
    drain: Callable[[], None],
    check_alive: Callable[[], None],
    on_poll: Callable[[], None],
) -> "RunState":
    answered = asked = time.monotonic()
    while True:
        drain()
        on_poll()
        now = time.monotonic()
        if reader.ended.is_set() or now - asked >= ASK_SECONDS:
            asked = now
            check_alive()
            try:
                state = control.state(run_id)
            except LaunchError:
                if now - answered >= LOST_SECONDS:
                    raise
            else:
                if state.status == "finished":
                    return state
                answered = now
        if reader.ended.is_set():
            time.sleep(POLL_SECONDS)
        else:
            reader.ended.wait(POLL_SECONDS)


class _LogReader:
    """Reads the log of a run in a thread of its own, since Flower's stream blocks."""

    def __init__(self, control: "Control", run_id: int) -> None:
        self.ended = threading.Event()
        self._stopped = threading.Event()
        self._control, self._run_id = control, run_id
        self._pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._rest = ""
        threading.Thread(target=self._read, name=f"log of run {run_id}", daemon=True).start()

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that have come, without colours; at the end also an unfinished one."""
        ended = self.ended.is_set()
        while not self._pieces.empty():
            *whole, self._rest = (self._rest + plain(self._pieces.get())).split("\n")
            yield from whole
        if ended and self._rest:
            yield self._rest
            self._rest = ""

    def stop(self) -> None:
        """Try no further."""
        self._stopped.set()

    def _read(self) -> None:
        latest = 0.0
        failed_at = None
        while not self._stopped.is_set():
            try:
                for piece, moment in self._control.logs(self._run_id, latest):
                    latest, failed_at = moment, None
                    self._pieces.put(piece)
                break
            except LaunchError:
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at >= LOST_SECONDS:
                    break
                self._stopped.wait(1.0)
        self.ended.set()
