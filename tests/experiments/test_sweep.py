"""Runs that are missing are done, once, whatever happened before."""

import contextlib
import errno
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gfpl_flwr.experiments import sweep as sweeping
from gfpl_flwr.experiments.design import Planned
from gfpl_flwr.experiments.experiment_file import read_experiment
from gfpl_flwr.experiments.sweep import Place, SweepError, Told, finished, sweep
from gfpl_flwr.flower import state


@pytest.fixture
def place(tmp_path, data_dir) -> Place:
    return Place(tmp_path / "runs", data_dir, "cpu", "gfpl table small")


def refuse(line: str) -> None:
    raise AssertionError(line)


def stamps(place: Place) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in place.runs.glob("*/summary.json")}


@pytest.mark.slow
def test_missing_runs_are_done_once_and_damaged_or_unfinished_ones_again(two_methods, place):
    planned = {key: its for key, its in two_methods.runs().items() if its.seed == 1}
    assert not finished(planned, place, refuse)
    told = list(sweep(planned, place, jobs=2))
    assert {its.key for its in told if its.finished and not its.failure} == planned.keys()
    done = finished(planned, place, refuse)
    assert done.keys() == planned.keys()
    assert all(its.command == "gfpl table small" for its in done.values())
    # hundreds of runs would fill the disk with the models of their sites
    assert not list(place.runs.rglob("visit-*.safetensors"))

    first, damaged, unfinished, *_ = sorted(planned)
    before = stamps(place)
    rounds = place.runs / damaged / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace('"visit"', '"visitt"', 1))
    (place.runs / unfinished / "summary.json").unlink()
    lines: list[str] = []
    found = finished(planned, place, lines.append)
    assert planned.keys() - found.keys() == {damaged, unfinished}
    (line,) = lines
    assert str(place.runs / damaged) in line
    assert "damaged and is run again" in line

    missing = {key: its for key, its in planned.items() if key not in found}
    assert {its.key for its in sweep(missing, place, jobs=1) if its.finished} == missing.keys()
    again = finished(planned, place, refuse)
    assert [again[key].accuracy for key in planned] == [done[key].accuracy for key in planned]
    assert stamps(place)[first] == before[first]
    assert stamps(place)[damaged] != before[damaged]


def test_a_run_that_fails_does_not_end_the_others(write, place):
    # With a learning rate like this every site diverges; the quorum is missed, the run fails.
    path = write(('GFPL = { algorithm = "gfpl" }', 'GFPL = { algorithm = "gfpl", learning-rate = 1e30 }'))
    experiment = read_experiment(path).only({"part": ["methods"], "ways": ["n = 2"]}, seeds=1)
    told = [its for its in sweep(experiment.runs(), place, jobs=1) if its.finished]
    failures = {its.key.partition("-")[0]: its.failure for its in told}
    assert failures["local"] == ""
    assert "QuorumError" in failures["gfpl"]
    assert "lower learning-rate" in failures["gfpl"]
    assert len(finished(experiment.runs(), place, refuse)) == 1


def full_disk(*_: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device", "/some/file")


def test_a_full_disk_ends_the_sweep_and_says_so(two_methods, place, monkeypatch):
    monkeypatch.setattr(sweeping, "_do", full_disk)
    with pytest.raises(SweepError, match=r"the disk is full \(/some/file\); finished runs are intact"):
        list(sweep(two_methods.runs(), place, jobs=1))
    assert not multiprocessing.active_children()


def die(*_: object) -> str:
    os._exit(1)


def test_a_worker_that_dies_ends_the_sweep_and_says_so(two_methods, place, monkeypatch):
    monkeypatch.setattr(sweeping, "_do", die)
    with pytest.raises(SweepError, match="a worker process died"):
        list(sweep(two_methods.runs(), place, jobs=1))


def offspring(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these did."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    own = [int(child) for task in tasks for child in task.read_text().split()]
    return [*own, *(grandchild for child in own for grandchild in offspring(child))]


def runs_on(pid: int) -> bool:
    """Return whether a process is there and is no zombie that nobody has looked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(write, tmp_path, data_dir):
    path = write(("rounds = 2", "rounds = 30"), ('"gfpl.first-exchange" = 1', '"gfpl.first-exchange" = 2'))
    words = ["table", str(path), "--only", "part=methods", "--only", "ways=n = 2", "--seeds", "1", "--jobs", "1"]
    words += ["--data-dir", str(data_dir), "--output-dir", str(tmp_path / "out")]
    command = [sys.executable, "-c", "from gfpl_flwr.cli import main; main()", *words]
    environment = os.environ | {"COLUMNS": "200"}
    runs = tmp_path / "out" / "runs"
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        begun = None
        for _ in range(600):
            begun = next((its for its in runs.glob("gfpl-*/rounds.jsonl") if its.read_text().count("\n") >= 2), None)
            if begun is not None:
                break
            time.sleep(0.1)
        assert begun is not None
        children = offspring(first.pid)
        assert children
        first.kill()  # the command alone: its workers end with it
        first.wait()
        ends = time.monotonic() + 20
        while any(map(runs_on, children)) and time.monotonic() < ends:
            time.sleep(0.1)
        assert not any(map(runs_on, children))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = begun.read_text().splitlines()[0]
    assert not (begun.parent / "summary.json").exists()

    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "2 runs, 1 done, 1 to do" in second.stderr  # Local was done before
    assert begun.read_text().splitlines()[0] == before  # the visits that were done are kept
    assert json.loads((begun.parent / "summary.json").read_text())["status"] == "completed"

    third = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "2 runs, 2 done, 0 to do" in third.stderr
    assert third.stdout == second.stdout
    names = {file.name for file in (tmp_path / "out" / "small").iterdir()}
    figures = {
        f"methods-digits-{name}.{suffix}" for name in ("curves", "tradeoff", "reach") for suffix in ("png", "svg")
    }
    assert names == figures | {"outcomes.jsonl", "methods.md", "methods.tex", "methods.csv"}


@pytest.fixture
def one(two_methods) -> dict[str, Planned]:
    """One run of GFPL."""
    return {key: its for key, its in two_methods.runs().items() if its.cell.get("method") == "GFPL"}


def test_a_run_with_visits_cut_off_or_sites_missing_is_no_finished_run(one, place):
    (key, its), *_ = one.items()
    list(sweep({key: its}, place, jobs=1))
    rounds = place.runs / key / "rounds.jsonl"
    first, second = lines = rounds.read_text().splitlines(keepends=True)
    failing = second.replace('"status": "ok"', '"status": "failed"', 1)
    assert failing != second
    for content, words in [
        (first, "rounds.jsonl holds 1 of 2 visits"),
        ("", "rounds.jsonl holds 0 of 2 visits"),
        (first + second[:-20], "rounds.jsonl holds 1 of 2 visits"),
        (first + failing, "1 contributions of sites are missing"),
        (first + second.replace('"notes": []', '"notes": [{"site": 1, "note": "its model is lost"}]'), "site 1: its"),
    ]:
        rounds.write_text(content)
        told: list[str] = []
        assert not finished({key: its}, place, told.append)
        (line,) = told
        assert words in line
    rounds.write_text("".join(lines))
    assert finished({key: its}, place, refuse)
    (place.runs / key / "config.json").write_text('{"name": "x", "config": {}, "versions": null}')
    assert not finished({key: its}, place, lambda _: None)


def test_a_run_that_another_command_has_done_meanwhile_is_left_alone(one, place):
    (key, its), *_ = one.items()
    list(sweep({key: its}, place, jobs=1))
    before = stamps(place)
    (told,) = [its for its in sweep({key: its}, place, jobs=1) if its.finished]
    assert told.failure == ""
    assert stamps(place) == before


def test_a_run_with_a_damaged_checkpoint_begins_anew_and_says_so(one, place):
    (key, its), *_ = one.items()
    list(sweep({key: its}, place, jobs=1))
    done = finished({key: its}, place, refuse)[key]
    state = place.runs / key / "prototypes.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    (place.runs / key / "summary.json").unlink()
    told = list(sweep({key: its}, place, jobs=1))
    (note,) = [news.note for news in told if news.note]
    assert "cannot go on and begins anew" in note
    assert told[-1].failure == ""
    assert finished({key: its}, place, refuse)[key].accuracy == done.accuracy


def test_a_site_whose_disk_is_full_ends_the_sweep(one, place, monkeypatch):
    (key, its), *_ = one.items()
    monkeypatch.setenv("GFPL_COMMAND", "set in this process, and put back")
    monkeypatch.setattr(state, "write_tensors", full_disk)
    with pytest.raises(SweepError, match="the disk is full"):
        sweeping._ending(Now(key, its, place), key, one)  # type: ignore[arg-type]


def test_a_site_without_room_for_its_model_ends_the_sweep(one, place, monkeypatch):
    (key, its), *_ = one.items()
    monkeypatch.setenv("GFPL_COMMAND", "set in this process, and put back")
    monkeypatch.setattr(state.os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with pytest.raises(SweepError, match="the disk is full"):
        sweeping._ending(Now(key, its, place), key, one)  # type: ignore[arg-type]


class Now:
    """A future whose run is done when its result is asked for, in this process."""

    def __init__(self, key: str, planned: Planned, place: Place) -> None:
        self.planned, self.place = planned, place

    def result(self) -> str:
        return sweeping._do(self.planned, self.place, queue.SimpleQueue())  # type: ignore[arg-type]


def test_progress_tells_rounds(two_methods, place):
    (key, its), *_ = [item for item in two_methods.runs().items() if item[1].options.get("algorithm") == "gfpl"]
    told = list(sweep({key: its}, place, jobs=1))
    assert told[-1] == Told(key, 2, finished=True)
    assert [news.rounds for news in told if not news.finished] == [1, 2]
    assert Path(place.runs / key / "summary.json").exists()
