"""Run a Flower app from Python, and leave nothing behind.

``flwr run`` returns when a run is submitted, with status 0 whatever becomes of it, and leaves a SuperLink
daemon running. :func:`run_app` waits for the end, says why a run failed, and ends every process it started.
Several runs in a row share one SuperLink through :func:`connect`, which saves the seconds of its start.
"""

import contextlib
import difflib
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfpl_flwr.flower.launch.failure import cause_of
from gfpl_flwr.flower.launch.federations import Federation, Scalar
from gfpl_flwr.flower.launch.follow import deaf_to_interrupts, follow
from gfpl_flwr.flower.launch.local_superlink import LocalSuperLink, start_local_superlink
from gfpl_flwr.flower.launch.phases import phases_of

if TYPE_CHECKING:
    from gfpl_flwr.flower.launch.control import Control


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        status: ``completed``, ``failed`` or ``stopped``.
        reason: why it failed or was stopped, on one line; empty if it completed.
        run_id: Flower's.
        seconds: wall time by phase: ``superlink`` until it answered, ``submit`` bundle and request, ``start``
            until the ServerApp's process had begun, ``run`` until its end, and ``shutdown``. Where sites are
            simulated also the parts of ``run``, see :func:`gfpl_flwr.flower.launch.phases.phases_of`.
    """

    status: str
    reason: str
    run_id: int
    seconds: Mapping[str, float]


@dataclass
class SuperLink:
    """A SuperLink that takes runs, one after the other. Made by :func:`connect`.

    Args:
        federation: where the runs happen.
        work_dir: folder of its logs.
        local: the child, where we started it.
        start_timeout: seconds the child may take to answer.
        seconds: wall time of ``superlink``, the wait until it answered, and ``shutdown``, as far as they have
            happened.
    """

    federation: Federation
    work_dir: Path
    local: LocalSuperLink | None = None
    start_timeout: float = 60.0
    seconds: dict[str, float] = field(default_factory=dict)
    _bundles: dict[Path, bytes] = field(default_factory=dict)

    @cached_property
    def control(self) -> "Control":
        """Its Control API; the first look at it waits until the SuperLink answers.

        Raises:
            LaunchError: it does not start or answer, with the cause on one line.
        """
        begun = time.monotonic()
        # Flower's command-line modules take a second to import, which the SuperLink needs to start anyway.
        from gfpl_flwr.flower.launch import control

        if self.local is None:
            opened = control.remote_control(self.federation)
        else:
            opened = control.local_control(self.local.address)
            self.local.wait_until_healthy(self.start_timeout)
        self.seconds["superlink"] = time.monotonic() - begun
        return opened

    def close(self) -> None:
        """Close what was opened to it."""
        if "control" in self.__dict__:
            self.control.close()

    def run(
        self,
        app_dir: Path,
        overrides: Mapping[str, Scalar],
        *,
        num_sites: int | None = None,
        on_log: Callable[[str], None] | None = None,
        on_poll: Callable[[], None] | None = None,
    ) -> Outcome:
        """Submit an app, follow it, and wait for its end.

        Args:
            app_dir: folder of the app's pyproject.toml.
            overrides: options that differ from the app's defaults.
            num_sites: simulated sites; ``None``: as the federation says.
            on_log: called in this thread with each line the ServerApp's process prints, without colours.
            on_poll: called in this thread about three times a second. What it raises stops the run.

        Returns:
            The outcome; also of a run that failed.

        Raises:
            ValueError: an option the app has not, or no valid app; nothing was submitted.
            LaunchError: the SuperLink refuses the run or is lost.
            KeyboardInterrupt: after the run was stopped. What the app has written is kept.
        """
        from gfpl_flwr.flower.launch.control import bundle_app

        check_overrides(app_dir, overrides)
        control = self.control
        begun = time.monotonic()
        simulation = self.federation.simulation_of(num_sites)
        if app_dir not in self._bundles:
            self._bundles[app_dir] = bundle_app(app_dir)
        run_id = control.submit(self._bundles[app_dir], overrides, simulation=simulation, group=self.federation.group)
        seconds = {"submit": time.monotonic() - begun}
        submitted = time.time()
        state, log = follow(
            control,
            run_id,
            log_file=self.work_dir / "flower.log",
            check_alive=self.local.check_alive if self.local else _nothing,
            on_log=on_log or _ignore,
            on_poll=on_poll or _nothing,
        )
        reason = "" if state.result == "completed" else cause_of(log, state.details) or f"run {state.result}"
        seconds |= {"start": state.waited or 0.0, "run": state.ran or 0.0}
        if self.local and state.ran:
            began = submitted + seconds["start"]
            seconds |= phases_of(self.local.marks, begun=began, ended=began + state.ran)
        return Outcome(state.result, reason, run_id, seconds)


@contextlib.contextmanager
def connect(federation: Federation, *, work_dir: Path, start_timeout: float = 60.0) -> Iterator[SuperLink]:
    """Open the SuperLink of a federation for some runs; a local one is started, and ended on the way out.

    A local one is waited for when it is first needed: it takes seconds of imports to answer, and so does its user.

    Args:
        federation: of :func:`gfpl_flwr.flower.launch.federations.read_federations`.
        work_dir: folder for ``superlink.log`` and ``flower.log``; made if it is not there.
        start_timeout: seconds a local SuperLink may take to answer.

    Yields:
        The SuperLink; a local one perhaps not ready to answer.

    Raises:
        LaunchError: it cannot be started, or its certificate cannot be read, with the cause on one line.
    """
    work_dir = work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    local = None
    if federation.is_local:
        local = start_local_superlink(work_dir / "superlink.log", threads=federation.threads_per_site)
    link = SuperLink(federation, work_dir, local, start_timeout)
    try:
        if local is None:
            _ = link.control
        yield link
    finally:
        ending = time.monotonic()
        with deaf_to_interrupts():
            link.close()
            if local:
                local.end()
        link.seconds["shutdown"] = time.monotonic() - ending


def run_app(
    app_dir: Path,
    federation: Federation,
    overrides: Mapping[str, Scalar],
    *,
    num_sites: int | None = None,
    work_dir: Path,
    on_log: Callable[[str], None] | None = None,
    on_poll: Callable[[], None] | None = None,
    start_timeout: float = 60.0,
) -> Outcome:
    """Run one app in a federation and wait for its end: :func:`connect` and :meth:`SuperLink.run` in one.

    Args and errors are theirs; the options are checked before anything is started.
    """
    check_overrides(app_dir, overrides)
    with connect(federation, work_dir=work_dir, start_timeout=start_timeout) as link:
        outcome = link.run(app_dir, overrides, num_sites=num_sites, on_log=on_log, on_poll=on_poll)
    return replace(outcome, seconds={**outcome.seconds, **link.seconds})


def check_overrides(app_dir: Path, overrides: Mapping[str, Scalar]) -> None:
    """Check options against ``[tool.flwr.app.config]`` of an app.

    Raises:
        ValueError: no such table, a key it has not, or a value Flower cannot carry; names the key.
    """
    path = app_dir / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        known = _flat(document["tool"]["flwr"]["app"].get("config", {}))
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} does not describe a Flower app: {error}") from None
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)
            raise ValueError(f"unknown option {key!r}; did you mean {', '.join(near)}?")
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"option {key!r} must be bool, int, float or str, got {value!r}")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _ignore(_line: str) -> None:
    pass


def _nothing() -> None:
    pass
