"""An experiment as a TOML file says it.

title = "Accuracy of ten methods"
source = "GFPL (arXiv 2602.21873), Table 1"
seeds = [1, 2, 3]

[options]                      # of every run
num-sites = 20

[[parts]]
name = "accuracy"
show = "methods"               # which table or figure it makes, see the keys of SHOWS
rows = "method"                # what each axis is in it
columns = "ways"

[parts.axes.dataset]           # an axis: names of its values, and the options that each sets
MNIST = { dataset = "mnist", rounds = 80 }

[parts.axes.method]
Local = { algorithm = "local" }
FedRep = { algorithm = "fedrep" }

[[parts.exceptions]]           # options of some cells alone
where = { dataset = "MNIST", method = "FedRep" }
options = { learning-rate = 0.003 }
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.dataset_settings import num_classes_of
from gfpl_flwr.experiments.design import OPTIONS, SHOWS, Experiment, ExperimentError, Part, check_keys

_OF_A_PART = {"name", "title", "show", "axes", "options", "seeds", "more-seeds", "exceptions", "left-out", "paper"}


def read_experiment(path: Path) -> Experiment:
    """Read an experiment and check every run of it.

    Raises:
        ExperimentError: the file cannot be read, a key or an option is unknown, a run cannot be made; names the file.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ExperimentError(f"{path}: {error}") from None
    try:
        experiment = _experiment(path.stem, document)
        for planned in experiment.runs().values():
            config, algorithm = parse_run(planned.options)
            algorithm.resolve(config, num_classes_of(config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExperimentError(f"{path}: {error}") from None
    return experiment


def _experiment(name: str, document: Mapping[str, Any]) -> Experiment:
    check_keys(document, {"title", "source", "options", "seeds", "more-seeds", "parts"}, "the experiment")
    parts = [_part(entry, document) for entry in document["parts"]]
    every = {
        axis: {value for part in parts for value in part.axes.get(axis, ())} for part in parts for axis in part.axes
    }
    for one in document.get("more-seeds", ()):
        _check_where(one["where"], every, "more-seeds")
    if len({part.name for part in parts}) < len(parts):
        raise ExperimentError("two parts have the same name")
    return Experiment(name, document["title"], document.get("source", ""), parts)


def _part(entry: Mapping[str, Any], document: Mapping[str, Any]) -> Part:
    show = entry.get("show")
    if show not in SHOWS:
        raise ExperimentError(f"show = {show!r}: must be one of {', '.join(SHOWS)}")
    check_keys(entry, {*_OF_A_PART, *SHOWS[show]}, f"part {entry.get('name')}")
    axes = entry["axes"]
    roles = {role: entry[role] for role in SHOWS[show]}
    if missing := [axis for axis in roles.values() if axis not in axes]:
        raise ExperimentError(f"part {entry['name']}: there is no axis {missing[0]!r}")
    options = document.get("options", {}) | entry.get("options", {})
    exceptions = [(one["where"], one["options"]) for one in entry.get("exceptions", ())]
    every = [options, *(its for values in axes.values() for its in values.values()), *(its for _, its in exceptions)]
    for given in every:
        check_keys(given, OPTIONS, "options")
    shared, own = document.get("more-seeds", ()), entry.get("more-seeds", ())
    of_some = [one["where"] for one in own] + [where for where, _ in exceptions]
    for where in of_some + list(entry.get("left-out", ())):
        _check_where(where, axes, f"part {entry['name']}")
    more = [(one["where"], one["seeds"]) for one in (*shared, *own)]
    return Part(
        name=entry["name"],
        title=entry.get("title", document["title"]),
        show=show,
        roles=roles,
        axes=axes,
        options=options,
        seeds=entry.get("seeds", document.get("seeds", (1,))),
        more_seeds=[(where, seeds) for where, seeds in more if set(where) <= set(axes)],
        exceptions=exceptions,
        left_out=entry.get("left-out", ()),
        paper=entry.get("paper", {}),
    )


def _check_where(where: Mapping[str, str], axes: Mapping[str, Collection[str]], what: str) -> None:
    check_keys(where, set(axes), what)
    for axis, value in where.items():
        if value not in axes[axis]:
            raise ExperimentError(f"{what}: unknown {axis} {value!r}, known are {', '.join(sorted(axes[axis]))}")
