"""Typed options: declared once on a frozen dataclass, parsed and checked once, before anything is contacted.

Flower hands an app one flat mapping of ``kebab-case`` keys to ``int | float | bool | str``. Keys without a dot
belong to :class:`RunConfig`; keys of the form ``<section>.<key>`` belong to the frozen dataclass of an algorithm
(``gfpl.threshold`` to :class:`gfpl_flwr.algorithms.gfpl.GFPL`), declared with the same :func:`option`.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Scalar = bool | int | float | str
T = TypeVar("T")


class ConfigError(ValueError):
    """An option that cannot be used; the message names the key, the value and what is allowed."""


def option(
    default: Scalar,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> Any:
    """Declare one option of a frozen dataclass.

    Args:
        default: value used when the key is absent; its type is the type of the option.
        help: one sentence for the person who sets it; the comment in ``pyproject.toml`` is this text.
        choices: allowed words of a string option.
        at_least, above, at_most, below: inclusive and exclusive bounds of a number.
        finite: whether infinity is refused; NaN always is.

    Returns:
        A dataclass field that carries the checks as metadata.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "finite": finite, **bounds})


def key_of(field_name: str, section: str = "") -> str:
    """Return the configuration key of a dataclass field: ``batch_size`` in section ``x`` is ``x.batch-size``."""
    return f"{section}.{field_name.replace('_', '-')}" if section else field_name.replace("_", "-")


def keys_of(cls: type, section: str = "") -> dict[str, "dataclasses.Field[Any]"]:
    """Return every configuration key of a dataclass of options, in the order of declaration.

    A field that was not declared with :func:`option` is no option.
    """
    return {key_of(field.name, section): field for field in dataclasses.fields(cls) if "help" in field.metadata}


def _allowed(field: "dataclasses.Field[Any]") -> str:
    checks = field.metadata
    if checks["choices"]:
        return "one of " + ", ".join(checks["choices"])
    words = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
    bounds = [f"{sign} {checks[name]:g}" for name, sign in words.items() if checks[name] is not None]
    kind = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[type(field.default)]
    return " ".join([kind, " and ".join(bounds)]).strip()


def _checked(key: str, value: object, field: "dataclasses.Field[Any]") -> Scalar:
    wanted = type(field.default)
    problem = ConfigError(f"{key} = {value!r}: must be {_allowed(field)}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted or not isinstance(value, (bool, int, float, str)):
        raise problem
    checks = field.metadata
    if checks["choices"] and value not in checks["choices"]:
        raise problem
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        inside = (
            not math.isnan(value)
            and (math.isfinite(value) or not checks["finite"])
            and (checks["at_least"] is None or value >= checks["at_least"])
            and (checks["above"] is None or value > checks["above"])
            and (checks["at_most"] is None or value <= checks["at_most"])
            and (checks["below"] is None or value < checks["below"])
        )
        if not inside:
            raise problem
    return value


def check_known(keys: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a key nobody declared.

    Raises:
        ConfigError: names the key and the closest known one, or all known ones where none is close.
    """
    known = list(known)
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "known keys: " + ", ".join(known)
            raise ConfigError(f"unknown key {key}: {hint}")


def parse(cls: type[T], flat: Mapping[str, object], *, section: str = "") -> T:
    """Build a checked dataclass of options from the flat mapping; keys of other sections are left alone.

    Args:
        cls: a frozen dataclass whose fields were declared with :func:`option`.
        flat: ``kebab-case`` keys to scalars, as in Flower's ``context.run_config``.
        section: the part before the dot; empty for :class:`RunConfig`.

    Raises:
        ConfigError: wrong type or impossible value, or a combination that ``cls`` refuses.
    """
    values = {
        field.name: _checked(key, flat[key], field) for key, field in keys_of(cls, section).items() if key in flat
    }
    return cls(**values)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run does, apart from the hyper-parameters of its algorithm.

    ``0`` and ``"auto"`` mean: the value that fits the data set, see :mod:`gfpl_flwr.dataset_settings`.
    """

    algorithm: str = option("gfpl", "The method to run, see gfpl_flwr/algorithms.")
    preset: str = option(
        "default",
        "paper compares the summed distance with the fusion threshold, as the paper writes it.",
        choices=("default", "paper"),
    )
    name: str = option("", "Name of the run's folder under output-dir; empty: made from algorithm, data and time.")
    output_dir: str = option("runs", "Where the server writes run folders; make it absolute for a remote server.")
    resume: bool = option(False, "Continue the run called name from its last checkpoint.")
    seed: int = option(1, "The one seed everything random is derived from.", at_least=0)
    # data
    dataset: str = option("digits", "digits, mnist, fashion-mnist, cifar10, cifar100, femnist or folder:PATH.")
    data_dir: str = option("data", "Where prepared data sets lie; a node's own data-dir comes first.")
    class_names: str = option(
        "", "folder: class names in the order of their labels, comma-separated; empty: the sub-folders found."
    )
    image_size: int = option(32, "Pixels a side to which images of a folder: data set are resized.", at_least=8)
    image_channels: int = option(
        0, "folder: 1 for grey images, 3 for colour; 0: what they are.", at_least=0, at_most=3
    )
    partition: str = option(
        "n-way-k-shot",
        "How samples are spread over sites; own: all of a node's data is its own.",
        choices=("n-way-k-shot", "dirichlet", "iid", "shards", "long-tail", "writers", "own"),
    )
    num_sites: int = option(0, "Sites that take part; 0: every node, once their number has settled.", at_least=0)
    sites_per_node: int = option(
        1, "Sites that a node hosts, one message for all of them; more than 1 needs num-sites.", at_least=1
    )
    ways: int = option(3, "n-way-k-shot: average number of classes of a site.", at_least=1)
    ways_spread: int = option(2, "n-way-k-shot: half-width of the ranges around ways and shots.", at_least=0)
    shots: int = option(0, "n-way-k-shot: average training samples a class; 0: the data set's.", at_least=0)
    test_shots: int = option(0, "n-way-k-shot: test samples a class; 0: the data set's.", at_least=0)
    alpha: float = option(0.5, "dirichlet: concentration; smaller is more uneven.", above=0)
    tail_ratio: float = option(100.0, "long-tail: size of the largest class over that of the smallest.", at_least=1)
    common_test_shots: int = option(
        0, "Test images of every class, on which every site is tested beside its own; 0: none.", at_least=0
    )
    common_test_every: int = option(10, "Rounds between tests on the common images; the last is one.", at_least=1)
    augment: str = option(
        "auto",
        "Random crop and flip of training images; auto: for CIFAR only.",
        choices=("auto", "none", "crop-flip"),
    )
    # model and local training
    model: str = option("auto", "Extractor; auto: resnet18 for CIFAR, else cnn.", choices=("auto", "cnn", "resnet18"))
    rounds: int = option(80, "T: local rounds of every site.", at_least=1)
    local_epochs: int = option(1, "Passes over a site's data in one local round; fedrep has its own.", at_least=1)
    batch_size: int = option(0, "Samples a step; 0: the data set's; 32 for resnet18.", at_least=0)
    learning_rate: float = option(0.01, "Step size of SGD, in local training and in retraining.", above=0)
    momentum: float = option(0.5, "Momentum of SGD; it starts at zero in every round.", at_least=0, below=1)
    weight_decay: float = option(0.0, "L2 penalty of SGD.", at_least=0)
    head: str = option(
        "classifier",
        "Inference head whose accuracy is reported: etf and sum of gfpl, the prototypes of fedproto.",
        choices=("classifier", "etf", "sum", "prototype", "own-prototype"),
    )
    share_label_counts: bool = option(
        True, "Sites tell how many training samples of each class they have; see gfpl.share-counts."
    )
    # execution
    device: str = option(
        "auto", "Where a site computes; auto: cuda if there is one.", choices=("auto", "cpu", "cuda")
    )
    torch_threads: int = option(
        1, "Threads of torch in a site's process; 1 is fastest for small networks.", at_least=1
    )
    cohort: int = option(20, "In-process engine: sites that a process trains as one network, at most.", at_least=1)
    workers: int = option(0, "In-process engine: worker processes; 0: one a core.", at_least=0)
    state_dir: str = option(
        "", "Where a site keeps its model; empty: site-models/ in output-dir; a node's own comes first."
    )
    quorum: float = option(
        0.5, "Share of the sites that must answer a visit, else the run stops.", above=0, at_most=1
    )
    visit_deadline: float = option(3600.0, "Seconds the server waits for the replies to a visit.", above=0)
    ask_again_after: float = option(
        300.0,
        "Seconds without a reply after which a real node is sent its order once more.",
        above=0,
    )
    node_deadline: float = option(60.0, "Seconds the server waits for enough nodes to be connected.", above=0)

    @property
    def class_list(self) -> tuple[str, ...]:
        """The class names, in the order of their labels."""
        return tuple(name.strip() for name in self.class_names.split(",") if name.strip())

    @property
    def num_nodes(self) -> int:
        """Nodes that host ``num_sites`` sites; 0 where nobody says how many there are."""
        return -(-self.num_sites // self.sites_per_node)

    def __post_init__(self) -> None:
        if self.image_channels == 2:
            raise ConfigError("image-channels = 2: must be 0, 1 or 3")
        if self.class_names and not self.dataset.startswith("folder:"):
            raise ConfigError(f"class-names = {self.class_names!r}: only for folder: data, not {self.dataset!r}")
        if self.sites_per_node > 1 and self.num_sites == 0:
            raise ConfigError(f"sites-per-node = {self.sites_per_node}: give num-sites, the number of all sites")
        if self.sites_per_node > max(1, self.num_sites):
            raise ConfigError(f"sites-per-node = {self.sites_per_node}: must be at most num-sites = {self.num_sites}")
        if self.sites_per_node > 1 and self.partition == "own":
            raise ConfigError(
                f"sites-per-node = {self.sites_per_node}: must be 1 with partition = 'own', "
                "where all of a node's data is one site's"
            )
