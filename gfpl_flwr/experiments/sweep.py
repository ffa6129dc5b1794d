"""Doing the runs of an experiment that are missing: on every core, after any interruption, and never twice."""

import contextlib
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import queue
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.experiments.design import Planned
from gfpl_flwr.experiments.outcomes import SCENE, Outcome, outcome_of
from gfpl_flwr.flower.files import DamagedFileError
from gfpl_flwr.flower.workers import begin_worker
from gfpl_flwr.report import Run, read_run


class SweepError(RuntimeError):
    """Why no further run can be done; finished ones are kept."""


@dataclass(frozen=True)
class Told:
    """What a sweep tells while it goes on.

    Attributes:
        key: of the run.
        rounds: local rounds of it that are done.
        finished: whether it has ended.
        failure: why it failed, on one line; empty where it did not.
        note: what else should be known, on one line; empty where there is nothing.
    """

    key: str
    rounds: int
    finished: bool = False
    failure: str = ""
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where runs are kept, and where data lies.

    Attributes:
        runs: folder of the run folders.
        data_dir: folder of the prepared data sets.
        device: ``auto``, ``cpu`` or ``cuda``.
        command: that the user typed, for the record of a run.
    """

    runs: Path
    data_dir: Path
    device: str = "auto"
    command: str = ""


def finished(planned: Mapping[str, Planned], place: Place, on_damage: Callable[[str], None]) -> dict[str, Outcome]:
    """Return the outcomes of the runs that are done.

    Args:
        planned: runs by key.
        place: where they are kept.
        on_damage: called with a line for each folder that cannot be read; such a run is done again.
    """
    found = {}
    for key, its in planned.items():
        folder = place.runs / key
        if not (folder / "summary.json").exists():
            continue
        try:
            run = read_run(folder)
            if run.status != "completed" or (its.scene and not (folder / SCENE).exists()):
                continue
            if fault := _fault(run, its):
                raise ValueError(fault)
            found[key] = outcome_of(run, key=key, options=its.options)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            on_damage(f"{folder} is damaged and is run again: {_line(error)}")
    return found


def _fault(run: Run, planned: Planned) -> str:
    """Return what keeps a completed run out of a table, or nothing: every visit counts, with every site in it."""
    config, algorithm = parse_run(planned.options)
    wanted = len(algorithm.visits(config))
    if [visit.visit for visit in run.visits] != list(range(1, wanted + 1)):
        return f"rounds.jsonl holds {len(run.visits)} of {wanted} visits"
    if run.failures:
        return f"{len(run.failures)} contributions of sites are missing"
    told = [f"site {site}: {note}" for visit in run.visits for site, note in visit.notes]
    return next(iter([*run.notes, *told]), "")


def sweep(planned: Mapping[str, Planned], place: Place, *, jobs: int) -> Iterator[Told]:
    """Do runs, each in a process of its own with one thread, the longest first.

    Yields:
        What happens, as it happens. A run that fails does not end the others.

    Raises:
        SweepError: the disk is full, or a worker process died.
        KeyboardInterrupt: after every process has been ended; what was computed is kept.
    """
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(begin_worker)
    with manager:
        progress: Any = manager.Queue()
        pool = ProcessPoolExecutor(jobs, context, initializer=begin_worker)
        try:
            ordered = sorted(planned.items(), key=lambda item: -item[1].rounds)
            waiting = {pool.submit(_do, its, place, progress): key for key, its in ordered}
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                yield from _news(progress)
                for future in done:
                    yield _ending(future, waiting.pop(future), planned)
        finally:
            children = list(pool._processes.values()) if pool._processes else []
            for child in children:
                child.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _news(progress: "queue.Queue[Told]") -> Iterator[Told]:
    while True:
        try:
            yield progress.get_nowait()
        except queue.Empty:
            return


def _ending(future: "Future[str]", key: str, planned: Mapping[str, Planned]) -> Told:
    try:
        return Told(key, planned[key].rounds, finished=True, failure=future.result())
    except BrokenProcessPool:
        raise SweepError("a worker process died: out of memory? Fewer --jobs need less") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise SweepError(f"the disk is full ({error.filename or error}); finished runs are intact") from None
        return Told(key, planned[key].rounds, finished=True, failure=_line(error))


def _do(planned: Planned, place: Place, progress: "queue.Queue[Told]") -> str:
    """Do one run, or go on with it; return why it failed, or nothing."""
    import torch

    torch.set_num_threads(1)
    logging.getLogger("flwr.gfpl").setLevel(logging.ERROR)  # what went wrong is told at the end
    os.environ["GFPL_COMMAND"] = place.command

    def tell(note: str) -> None:
        progress.put(Told(planned.key, 0, note=note))

    with _alone(place.runs / "locks" / planned.key):
        if finished({planned.key: planned}, place, lambda _: None):  # what is damaged was told before
            return ""  # by another command, while this one was busy with other runs
        try:
            try:
                _run(planned, place, progress, resume=_can_go_on(planned, place, tell))
            except DamagedFileError as error:
                tell(f"{place.runs / planned.key} cannot go on and begins anew: {_line(error)}")
                _remove(place.runs / planned.key)
                _run(planned, place, progress, resume=False)
        except (ValueError, RuntimeError) as error:
            if f"[Errno {errno.ENOSPC}]" in str(error):  # as a site told it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place.runs)) from None
            return _line(error)
        _drop_models(place.runs / planned.key)
    return ""


def _run(planned: Planned, place: Place, progress: "queue.Queue[Told]", *, resume: bool) -> None:
    from gfpl_flwr.flower.inprocess import run_in_process
    from gfpl_flwr.flower.progress import Progress

    flat: dict[str, Any] = dict(planned.options) | {
        "name": planned.key,
        "output-dir": str(place.runs),
        "data-dir": str(place.data_dir),
        "device": place.device,
        "workers": 1,
        "quorum": 1.0,  # a mean over other sites is another number
        "resume": resume,
    }

    def tell(now: Progress) -> None:
        if now.done:
            progress.put(Told(planned.key, planned.rounds * now.visit // now.visits))

    run_in_process(flat, on_progress=tell)
    if planned.scene:
        from gfpl_flwr.experiments.scene import write_scene

        write_scene(place.runs / planned.key, planned.options, place.data_dir)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is at work on a run, and keep others from it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _can_go_on(planned: Planned, place: Place, tell: Callable[[str], None]) -> bool:
    """Return whether a run was begun here and can be resumed; clear away what cannot."""
    folder = place.runs / planned.key
    if not folder.exists():
        return False
    try:
        summary = folder / "summary.json"
        if not summary.exists() or json.loads(summary.read_text())["status"] != "completed":
            read_run(folder)
            return True
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        tell(f"{folder} is damaged and is run again: {_line(error)}")
    _remove(folder)
    return False


def _remove(folder: Path) -> None:
    _drop_models(folder)
    shutil.rmtree(folder)


def _drop_models(folder: Path) -> None:
    """Remove the models of the sites of a run: hundreds of runs would fill the disk with them."""
    try:
        key = json.loads((folder / "config.json").read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    shutil.rmtree(folder.parent / "site-models" / key, ignore_errors=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
