"""The algorithms, one file a paper, and the way from a flat configuration to one of them."""

import json
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from gfpl_flwr.algorithms.base import Algorithm
from gfpl_flwr.algorithms.fedavg import FedAvg
from gfpl_flwr.algorithms.fedfa import FedFA
from gfpl_flwr.algorithms.fedpa import FedPA
from gfpl_flwr.algorithms.fedper import FedPer
from gfpl_flwr.algorithms.fedproto import FedProto
from gfpl_flwr.algorithms.fedprox import FedProx
from gfpl_flwr.algorithms.fedrep import FedRep
from gfpl_flwr.algorithms.fesem import FeSEM
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.algorithms.local import Local
from gfpl_flwr.config import ConfigError, RunConfig, Scalar, check_known, keys_of, parse
from gfpl_flwr.dataset_settings import architecture_of

ALGORITHMS: dict[str, type[Algorithm]] = {
    cls.name: cls for cls in (GFPL, Local, FedAvg, FedProx, FeSEM, FedPer, FedRep, FedProto, FedFA, FedPA)
}


def known_fields() -> dict[str, "Field[Any]"]:
    """Return every configuration key with the field that declares it."""
    fields = keys_of(RunConfig)
    for name, cls in ALGORITHMS.items():
        fields |= keys_of(cls, name)
    return fields


def defaults() -> dict[str, Scalar]:
    """Return every configuration key with its default, as Flower's flat mapping."""
    found: dict[str, Any] = {key: field.default for key, field in known_fields().items()}
    return found


def of_its_method(options: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the options of a run without those of other methods than its own: they have no part in it."""
    algorithm = options.get("algorithm", defaults()["algorithm"])
    others = tuple(f"{name}." for name in ALGORITHMS if name != algorithm)
    return {key: value for key, value in options.items() if not key.startswith(others)}


def parse_run(flat: Mapping[str, object]) -> tuple[RunConfig, Algorithm]:
    """Check a flat configuration whole, and build the run's options and its algorithm.

    Args:
        flat: keys to scalars as in Flower's ``context.run_config``; absent keys have their defaults.

    Raises:
        ConfigError: unknown key, wrong type, impossible value or unknown algorithm; names key, value and what is
            allowed.
    """
    check_known(flat, known_fields())
    config = parse(RunConfig, flat)
    if config.algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm = {config.algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
    if config.batch_size == 1 and architecture_of(config) == "resnet18":
        raise ConfigError("batch-size = 1: must be >= 2 with resnet18, whose BatchNorm cannot train on one sample")
    if config.head not in ALGORITHMS[config.algorithm].heads:
        known = ", ".join(ALGORITHMS[config.algorithm].heads)
        raise ConfigError(f"head = {config.head!r}: must be one of {known} with algorithm = {config.algorithm!r}")
    # Sections of other algorithms are checked too: a mistake there is a mistake.
    parsed = {name: parse(cls, flat, section=name) for name, cls in ALGORITHMS.items()}
    return config, parsed[config.algorithm]


def config_table() -> str:
    """Return the ``[tool.flwr.app.config]`` tables of ``pyproject.toml``: every key, its default and meaning."""
    sections: dict[str, list[str]] = {"": []}
    for key, field in known_fields().items():
        section, _, name = key.rpartition(".")
        value = json.dumps(field.default) if isinstance(field.default, (bool, str)) else repr(field.default)
        choices = field.metadata["choices"]
        words = f" ({' | '.join(choices)})" if choices else ""
        sections.setdefault(section, []).extend([f"# {field.metadata['help']}{words}", f"{name} = {value}"])
    tables = []
    for section, lines in sections.items():
        suffix = f".{section}" if section else ""
        tables.append("\n".join([f"[tool.flwr.app.config{suffix}]", *lines]))
    return "\n\n".join(tables) + "\n"
