"""The folder of a run: everything a report needs, written as it happens, so that an end at any time loses nothing."""

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from gfpl_flwr import __version__
from gfpl_flwr.algorithms import defaults, of_its_method
from gfpl_flwr.config import ConfigError, RunConfig, parse
from gfpl_flwr.flower.files import DamagedFileError, read_tensors, write_atomically, write_json, write_tensors
from gfpl_flwr.flower.provenance import continued, provenance

CONFIG, ROUNDS, SUMMARY = "config.json", "rounds.jsonl", "summary.json"

# Keys that may differ between a run and its continuation: they do not touch its result.
FREE_KEYS = {
    "resume",
    "output-dir",
    "data-dir",
    "state-dir",
    "visit-deadline",
    "ask-again-after",
    "node-deadline",
    "quorum",
    "device",
}


def run_path(config: RunConfig) -> Path:
    """Return the absolute path of a run's folder; without a name it is made of algorithm, data and time."""
    dataset = config.dataset.rstrip("/").rpartition("/")[2].replace(":", "-")
    name = config.name or f"{config.algorithm}-{dataset}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Path(config.output_dir).expanduser().resolve() / name


PLACE_KEYS = {"name", "output-dir", "resume"}


class RunFolder:
    """One run's folder ``<output-dir>/<name>``.

    Args:
        path: of the folder.
        key: names the run towards the sites; the same again when it is resumed.
        state_name: the server's state is kept in ``<state_name>.safetensors``.
    """

    def __init__(self, path: Path, key: str, state_name: str) -> None:
        self.path = path
        self.key = key
        self._state = path / f"{state_name}.safetensors"
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._resumed_with: dict[str, str] | None = None  # until a visit of the resumed part is done

    @classmethod
    def open(
        cls, config: RunConfig, flat: Mapping[str, Any], *, engine: str, command: str, state_name: str
    ) -> "RunFolder":
        """Make the folder of a new run, or open that of a run to be resumed.

        Args:
            config: the run's options.
            flat: the whole configuration as keys and values, kept in ``config.json``.
            engine: ``"flower"`` or ``"inprocess"``.
            command: how the user started the run.
            state_name: base name of the file of the server's state.

        Raises:
            ConfigError: the name is taken; or there is nothing to resume, or it had another configuration.
        """
        path = run_path(config)
        if config.resume:
            folder = cls(path, cls.check(config, flat), state_name)
            folder._resumed_with = provenance(config.device)
            return folder
        cls.check(config, flat)
        started, name = datetime.now(UTC), path.name
        path.mkdir(parents=True, exist_ok=True)
        key = f"{name}-{started:%Y%m%d%H%M%S%f}"
        facts = {
            "name": name,
            "key": key,
            "app_version": __version__,
            "versions": provenance(config.device),
            "engine": engine,
            "command": command,
            "started": started.isoformat(timespec="seconds"),
            "config": defaults() | dict(flat),
        }
        write_json(path / CONFIG, facts)
        (path / ROUNDS).touch()
        return cls(path, key, state_name)

    @staticmethod
    def saved_config(overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of the run that is to be resumed; nothing where a new one is asked for.

        So ``--resume`` needs no option of the first time again.
        """
        config = parse(RunConfig, {key: value for key, value in overrides.items() if key in PLACE_KEYS})
        path = run_path(config) / CONFIG
        if not config.resume or not path.exists():
            return {}
        saved: dict[str, Any] = json.loads(path.read_text())["config"]
        return saved

    @staticmethod
    def check(config: RunConfig, flat: Mapping[str, Any]) -> str:
        """Check that a run can have its name, or that the run to be resumed is there and was the same.

        Returns:
            The key of the run to be resumed; empty for a new one.

        Raises:
            ConfigError: as :meth:`open`.
        """
        path = run_path(config)
        if not config.resume:
            if (path / ROUNDS).exists():
                raise ConfigError(
                    f"name = {path.name!r}: {path} already holds a run; choose another name or set resume = true"
                )
            return ""
        try:
            facts = json.loads((path / CONFIG).read_text())
        except (OSError, ValueError):
            raise ConfigError(f"resume = true: {path} holds no run to resume") from None
        was, now = of_its_method(facts["config"]), of_its_method(defaults() | dict(flat))
        keys = (was.keys() | now.keys()) - FREE_KEYS
        if changed := sorted(key for key in keys if was.get(key) != now.get(key)):
            listed = ", ".join(f"{key} = {now.get(key)!r} (was {was.get(key)!r})" for key in changed)
            raise ConfigError(f"resume = true: the run in {path} had another configuration: {listed}")
        key: str = facts["key"]
        return key

    def load_state(self) -> tuple[int, dict[str, Tensor]]:
        """Return the last checkpoint: index of its visit and the server's state; 0 and nothing before the first.

        Lines of ``rounds.jsonl`` after it are dropped: those visits are done again.

        Raises:
            DamagedFileError: the checkpoint is damaged; names the file.
        """
        try:
            state, facts = read_tensors(self._state)
        except FileNotFoundError:
            state, facts = {}, {"visit": 0}
        visit = int(facts["visit"])
        summary = self.path / SUMMARY
        if summary.exists():  # of the part that is continued
            self._seconds_before = float(json.loads(summary.read_text()).get("seconds", 0.0))
            summary.unlink()
        kept = []
        for line in (self.path / ROUNDS).read_text().splitlines():
            try:
                if json.loads(line)["visit"] <= visit:
                    kept.append(line + "\n")
            except ValueError:
                break  # the last line, torn when the server was killed
        if len(kept) < visit:
            raise DamagedFileError(f"{self.path / ROUNDS} has {len(kept)} visits, its checkpoint has {visit}")
        write_atomically(self.path / ROUNDS, "".join(kept).encode())
        return visit, state

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of ``rounds.jsonl``; after :meth:`load_state` those of the visits that are done."""
        return [json.loads(line) for line in (self.path / ROUNDS).read_text().splitlines()]

    def record(self, visit: int, line: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Append a visit to ``rounds.jsonl``, then checkpoint the server's state after it."""
        if self._resumed_with:
            facts = json.loads((self.path / CONFIG).read_text())
            write_json(self.path / CONFIG, facts | {"versions": continued(facts["versions"], self._resumed_with)})
            self._resumed_with = None
        with (self.path / ROUNDS).open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        write_tensors(self._state, state, {"visit": visit})

    def finish(self, status: str, reason: str | None = None, **facts: Any) -> None:
        """Write ``summary.json``: how the run ended and why.

        Args:
            status: ``"completed"``, ``"failed"`` or ``"interrupted"``.
            reason: one line, where there is one.
            facts: what else belongs into the summary.
        """
        seconds = round(self._seconds_before + time.monotonic() - self._started, 3)
        write_json(self.path / SUMMARY, {"status": status, "reason": reason, "seconds": seconds, **facts})
