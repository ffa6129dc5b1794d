"""Watching a run: its log, its end, its loss, its interruption, and the cause of its failure on one line."""

import os
import signal
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfpl_flwr.flower.launch import follow as following
from gfpl_flwr.flower.launch.failure import LONGEST_CAUSE, cause_of
from gfpl_flwr.flower.launch.local_superlink import LaunchError


def raised_by(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception:
        return traceback.format_exc()
    raise AssertionError("nothing was raised")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_cause_is_the_type_and_message_on_one_line(message: str) -> None:
    """Python prints the traceback; a blank line in a message ends it, as a log entry might follow."""

    def fail() -> None:
        raise KeyError if not message.strip() else ValueError(message)

    log = f"INFO :      begins\n{raised_by(fail)}\x1b[91mERROR \x1b[0m:     Exit Code: 700\n"
    cause = cause_of(log)
    assert len(cause.splitlines()) == 1
    assert "\x1b[" not in cause
    assert len(cause) <= LONGEST_CAUSE
    assert "Exit Code" not in cause.removeprefix(f"ValueError: {message}")
    if message.isalnum():
        assert cause == f"ValueError: {message}"[:LONGEST_CAUSE]


def test_of_a_chain_the_app_s_last_word_counts_and_flower_s_wrapper_does_not() -> None:
    def chained(outer: str) -> None:
        try:
            raise ZeroDivisionError("division by zero")
        except ZeroDivisionError as error:
            raise RuntimeError(outer) from error

    assert cause_of(raised_by(lambda: chained("no site answered"))) == "RuntimeError: no site answered"
    wrapper = "An error was encountered. Ending simulation."
    assert cause_of(raised_by(lambda: chained(wrapper)), "details") == "ZeroDivisionError: division by zero"


def test_an_exception_s_module_and_empty_message_are_left_out() -> None:
    assert cause_of(raised_by(lambda: tomllib.loads("="))).startswith("TOMLDecodeError: Invalid statement")

    def fail() -> None:
        raise NotADirectoryError

    assert cause_of(raised_by(fail)) == "NotADirectoryError"


def test_without_a_traceback_flower_s_details_are_the_cause() -> None:
    assert cause_of("INFO: begins", "Simulation failed with exception: two\n lines") == "two lines"
    assert cause_of("", "No heartbeat received from the task") == "No heartbeat received from the task"
    assert cause_of("") == ""


def test_a_long_cause_is_cut() -> None:
    cause = cause_of("", "x" * 1000)
    assert len(cause) == LONGEST_CAUSE
    assert cause.endswith("…")


class ScriptedControl:
    """Answers as a SuperLink would: the log in pieces, then states, an exception being raised."""

    def __init__(self, pieces: list[str], states: list[Any]) -> None:
        self.pieces, self.states, self.stopped = pieces, states, threading.Event()

    def logs(self, _run_id: int, after: float) -> Iterator[tuple[str, float]]:
        for moment, piece in enumerate(self.pieces, start=1):
            if moment > after:
                yield piece, float(moment)
        if not self.states:
            self.stopped.wait(10.0)

    def state(self, _run_id: int) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def stop(self, _run_id: int) -> None:
        self.stopped.set()


RUNNING, FINISHED = SimpleNamespace(status="running"), SimpleNamespace(status="finished", result="completed")


def watch(control: ScriptedControl, log_file: Path, **callbacks: Callable[..., None]) -> tuple[Any, str, list[str]]:
    lines: list[str] = []
    known: dict[str, Any] = {"check_alive": lambda: None, "on_poll": lambda: None, "on_log": lines.append}
    state, tail = following.follow(control, 1, log_file=log_file, **known | callbacks)  # type: ignore[arg-type]
    return state, tail, lines


def test_the_log_comes_in_whole_lines_without_colours(tmp_path: Path) -> None:
    control = ScriptedControl(["\x1b[92mINFO\x1b[0m: a", "b\nc\n\nd", "e"], [RUNNING, FINISHED])
    state, tail, lines = watch(control, tmp_path / "log")
    assert lines == ["INFO: ab", "c", "", "de"]
    assert tail == "INFO: ab\nc\n\nde"
    assert (tmp_path / "log").read_text() == tail + "\n"
    assert state is FINISHED
    assert not control.stopped.is_set()


def test_what_is_raised_while_watching_stops_the_run(tmp_path: Path) -> None:
    control = ScriptedControl(["a\n"], [])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(control, tmp_path / "log", on_poll=interrupt)
    assert control.stopped.is_set()


def test_a_silence_is_borne_for_a_while_and_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    silence = LaunchError("no state from the SuperLink at h:1")
    state, *_ = watch(ScriptedControl([], [silence, silence, FINISHED]), tmp_path / "log")
    assert state is FINISHED
    monkeypatch.setattr(following, "LOST_SECONDS", 0.05)
    lost = ScriptedControl([], [silence])
    with pytest.raises(LaunchError, match="no state"):
        watch(lost, tmp_path / "log")
    assert not lost.stopped.is_set()  # it may be back just now, and its run goes on


def test_a_second_interrupt_waits_until_the_first_is_dealt_with() -> None:
    before = signal.getsignal(signal.SIGINT)
    with following.deaf_to_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGINT) is before
