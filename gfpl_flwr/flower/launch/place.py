"""Where a run happens, as far as it can be said at once: without torch, which takes seconds to import."""

import contextlib
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gfpl_flwr.config import ConfigError, Scalar
from gfpl_flwr.flower.launch.federations import Federation, read_federations, select_federation
from gfpl_flwr.flower.launch.local_superlink import LaunchError
from gfpl_flwr.flower.launch.superlink import SuperLink, connect

ENGINES = ("flower", "inprocess")
FEDERATIONS = "pyproject-federation.toml"


@dataclass(frozen=True)
class Place:
    """An engine, and what Flower's needs.

    Attributes:
        engine: ``"flower"`` or ``"inprocess"``.
        federation: where Flower runs the app; None in this process.
        app_dir: folder of the app's pyproject.toml.
    """

    engine: str
    federation: Federation | None = None
    app_dir: Path | None = None


def check_engine(engine: str) -> None:
    """Raise ConfigError for an engine that does not exist."""
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine}: must be one of {', '.join(ENGINES)}")


def choose(engine: str, federation: str = "") -> Place:
    """Return the place of a name.

    Args:
        engine: ``"flower"`` or ``"inprocess"``.
        federation: a name in pyproject-federation.toml; empty for its default.

    Raises:
        ValueError: an engine, an app or a federation that is not there.
    """
    check_engine(engine)
    if engine == "flower":
        app_dir = find_app()
        return Place(engine, select_federation(read_federations(app_dir / FEDERATIONS), federation), app_dir)
    if federation:
        raise ConfigError(f"a federation ({federation}) needs --engine flower")
    return Place(engine)


def find_app() -> Path:
    """Return the folder of the Flower app: the current one or one above it, else that of this package's source.

    Raises:
        ConfigError: there is none; says what is looked for.
    """
    here = Path.cwd()
    for folder in [here, *here.parents, Path(__file__).parents[3]]:
        with contextlib.suppress(OSError, tomllib.TOMLDecodeError):
            document = tomllib.loads((folder / "pyproject.toml").read_text())
            if document.get("project", {}).get("name") == "gfpl-flwr":
                return folder
    raise ConfigError(f"no gfpl-flwr app in {here} or above it; --engine flower needs a checkout, inprocess does not")


@contextlib.contextmanager
def opened(place: Place) -> Iterator[SuperLink | None]:
    """Open the SuperLink of a place, None in this process; start it where it is local, and end it on the way out.

    Where it does not start or is lost, the folder with its log, which the error names, is kept.
    """
    if place.federation is None:
        yield None
        return
    work_dir = Path(tempfile.mkdtemp(prefix="gfpl-logs-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work_dir, ignore_errors=True)
        try:
            with connect(place.federation, work_dir=work_dir) as link:
                yield link
        except LaunchError as error:
            if not place.federation.is_local:
                raise
            stack.pop_all()
            told = str(error)
            raise LaunchError(told if str(work_dir) in told else f"{told} (its logs are in {work_dir})") from None


def demo_runs(output_dir: Path, data_dir: Path) -> list[dict[str, Scalar]]:
    """Return the demo's two runs, GFPL and Local on digits."""
    common: dict[str, Scalar] = {
        "dataset": "digits",
        "num-sites": 8,
        "shots": 15,
        "rounds": 40,
        "gfpl.first-exchange": 20,
        "gfpl.exchange-every": 10,
        "output-dir": str(output_dir),
        "data-dir": str(data_dir),
    }
    return [common | {"algorithm": name, "name": name} for name in ("gfpl", "local")]
