"""Where a run can happen: the federations of ``pyproject-federation.toml``, in Flower's own format.

Flower reads SuperLink connections from ``$FLWR_HOME/config.toml`` and ignores a key it does not know; here a
misspelt key is an error, and a certificate's path may be relative to the file that names it.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Scalar = bool | int | float | str

LOCAL_ADDRESSES = (":local:", ":local-in-memory:")
"""Flower's two names for a SuperLink that is started on this machine, with the simulation engine."""

_CONNECTION_KEYS: dict[str, type] = {
    "address": str,
    "insecure": bool,
    "root-certificates": str,
    "federation": str,
}

# Key of the file -> (name in Flower's SimulationConfig message, type, least value).
_SIMULATION_KEYS: dict[str, tuple[str, type, float | None]] = {
    "options.num-supernodes": ("num_supernodes", int, 1),
    "options.verbose": ("verbose", bool, None),
    "options.backend.name": ("backend", str, None),
    "options.backend.client-resources.num-cpus": ("client_resources_num_cpus", int, 1),
    "options.backend.client-resources.num-gpus": ("client_resources_num_gpus", float, 0),
    "options.backend.init-args.num-cpus": ("init_args_num_cpus", int, 1),
    "options.backend.init-args.num-gpus": ("init_args_num_gpus", int, 0),
    "options.backend.init-args.logging-level": ("init_args_logging_level", str, None),
    "options.backend.init-args.log-to-driver": ("init_args_log_to_driver", bool, None),
}


@dataclass(frozen=True)
class Federation:
    """One ``[superlink.NAME]`` table.

    Args:
        name: of the table.
        address: ``host:port`` of a SuperLink that runs already, or one of :data:`LOCAL_ADDRESSES`.
        insecure: plain HTTP instead of TLS.
        root_certificates: absolute path of the certificate authority's file; ``None``: the system's.
        group: Flower's federation within that SuperLink, ``@account/name``; empty: its default.
        simulation: settings of the simulation engine, by the names of Flower's ``SimulationConfig`` message.
        is_default: used when no name is given.
    """

    name: str
    address: str
    insecure: bool = False
    root_certificates: Path | None = None
    group: str = ""
    simulation: Mapping[str, Scalar] = field(default_factory=dict)
    is_default: bool = False

    @property
    def is_local(self) -> bool:
        """Whether its SuperLink is started, and ended, by us."""
        return self.address in LOCAL_ADDRESSES

    @property
    def threads_per_site(self) -> int:
        """CPU cores of one simulated site, so threads of its process; 1 where nothing is said."""
        return int(self.simulation.get("client_resources_num_cpus", 1))

    def simulation_of(self, num_sites: int | None) -> dict[str, Scalar]:
        """Return the settings of the simulation engine for so many sites.

        Args:
            num_sites: simulated nodes, which are the sites where ``sites-per-node`` says nothing else; ``None``:
                as the file says. Without effect where sites are devices.

        Raises:
            ValueError: no site at all.
        """
        settings = dict(self.simulation)
        if num_sites is not None and (self.is_local or settings):
            if num_sites < 1:
                raise ValueError(f"a federation needs at least 1 site, got {num_sites}")
            settings["num_supernodes"] = num_sites
        if self.is_local:
            # Flower's default of 2 gives a single process on two cores, and none at all on one.
            settings.setdefault("client_resources_num_cpus", 1)
        return settings


def read_federations(path: Path) -> dict[str, Federation]:
    """Read every federation of a file.

    Args:
        path: of a TOML file with tables ``[superlink]`` and ``[superlink.NAME]``, like Flower's own.

    Returns:
        Federations by name, in the file's order.

    Raises:
        ValueError: no such file, no valid TOML, a key or value that Flower does not take; names file and key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the federations of {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    tables = document.get("superlink")
    if not isinstance(tables, dict):
        raise ValueError(f"{path} has no [superlink] table")
    default = tables.pop("default", None)
    if default is not None and default not in tables:
        raise ValueError(f"{path}: superlink.default is {default!r}, known: {', '.join(tables)}")
    try:
        folder = path.resolve().parent
        return {name: _federation(name, table, folder, name == default) for name, table in tables.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def select_federation(federations: Mapping[str, Federation], name: str = "") -> Federation:
    """Return the federation of a name, or the default one.

    Raises:
        ValueError: no federation has that name, or none was given and there is no default; lists the known.
    """
    known = ", ".join(federations) or "none"
    if name:
        if name not in federations:
            raise ValueError(f"unknown federation {name!r}, known: {known}")
        return federations[name]
    for federation in federations.values():
        if federation.is_default:
            return federation
    raise ValueError(f"no federation given and no default set, known: {known}")


def _federation(name: str, table: Any, folder: Path, is_default: bool) -> Federation:
    prefix = f"superlink.{name}"
    if not isinstance(table, dict):
        raise ValueError(f"{prefix} must be a table, got {table!r}")
    connection: dict[str, Any] = {}
    simulation: dict[str, Scalar] = {}
    for key, value in _flat(table):
        if key in _CONNECTION_KEYS:
            connection[key] = _checked(f"{prefix}.{key}", value, _CONNECTION_KEYS[key])
        elif key in _SIMULATION_KEYS:
            target, kind, least = _SIMULATION_KEYS[key]
            simulation[target] = _checked(f"{prefix}.{key}", value, kind, least)
        else:
            allowed = ", ".join([*_CONNECTION_KEYS, *_SIMULATION_KEYS])
            raise ValueError(f"{prefix}.{key} is not known, allowed: {allowed}")
    address = connection.get("address", LOCAL_ADDRESSES[0] if simulation else "")
    insecure = connection.get("insecure", False)
    certificates = connection.get("root-certificates")
    if not address:
        raise ValueError(f"{prefix}.address is missing: host:port, or {LOCAL_ADDRESSES[0]!r} for this machine")
    if "://" in address or (address.startswith(":") and address not in LOCAL_ADDRESSES):
        allowed = ", ".join(LOCAL_ADDRESSES)
        raise ValueError(f"{prefix}.address must be host:port or one of {allowed}, got {address!r}")
    if insecure and certificates:
        raise ValueError(f"{prefix}: insecure = true and root-certificates exclude each other")
    return Federation(
        name=name,
        address=address,
        insecure=insecure,
        root_certificates=folder / Path(certificates).expanduser() if certificates else None,
        group=connection.get("federation", ""),
        simulation=simulation,
        is_default=is_default,
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _checked(key: str, value: Any, kind: type, least: float | None = None) -> Any:
    # To Python a bool is an int, and an int is no float; to a reader of TOML it is the other way round.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{key} must be {kind.__name__}, got {value!r}")
    checked = kind(value)
    if least is not None and not checked >= least:
        raise ValueError(f"{key} must be >= {least}, got {value!r}")
    return checked
