"""Every option is declared once, documented, and checked before anything starts."""

import math
import tomllib
from pathlib import Path

import pytest

from gfpl_flwr.algorithms import ALGORITHMS, config_table, defaults, known_fields, parse_run
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.data.partitions import SCHEMES

ROOT = Path(__file__).parents[1]


def flatten(table: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_pyproject_lists_every_key_with_its_default_and_meaning():
    text = (ROOT / "pyproject.toml").read_text()
    assert config_table() in text, "run: python -c 'from gfpl_flwr.algorithms import config_table as t; print(t())'"
    config = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert flatten(config) == defaults()


def test_defaults_parse_to_the_default_options():
    config, algorithm = parse_run(defaults())
    assert config == RunConfig()
    assert algorithm == GFPL()


def test_values_reach_their_fields():
    config, algorithm = parse_run({"rounds": 12, "learning-rate": 1, "gfpl.threshold": math.inf, "seed": 3})
    assert (config.rounds, config.learning_rate, config.seed) == (12, 1.0, 3)
    assert isinstance(algorithm, GFPL)
    assert algorithm.threshold == math.inf


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"round": 3}, ["unknown key round", "did you mean rounds?"]),
        ({"zzz": 3}, ["unknown key zzz", "known keys: algorithm, preset"]),
        ({"gfpl.tau": 1.0}, ["unknown key gfpl.tau"]),
        ({"rounds": "three"}, ["rounds = 'three'", "an integer >= 1"]),
        ({"rounds": True}, ["rounds = True", "an integer"]),
        ({"rounds": 2.0}, ["rounds = 2.0", "an integer"]),
        ({"rounds": 0}, ["rounds = 0", ">= 1"]),
        ({"momentum": 1.0}, ["momentum = 1.0", ">= 0 and < 1"]),
        ({"learning-rate": math.nan}, ["learning-rate = nan", "> 0"]),
        ({"learning-rate": math.inf}, ["learning-rate = inf"]),
        ({"gfpl.threshold": math.nan}, ["gfpl.threshold = nan"]),
        ({"gfpl.threshold": -1.0}, ["gfpl.threshold = -1.0", ">= 0"]),
        ({"gfpl.rule": "best"}, ["gfpl.rule = 'best'", "closest_pair, first_fit"]),
        ({"algorithm": "fedsgd"}, ["algorithm = 'fedsgd'", *ALGORITHMS]),
        ({"resume": 1}, ["resume = 1", "true or false"]),
        ({"dataset": 5}, ["dataset = 5", "a string"]),
        # a mistake in the section of an algorithm that is not selected is a mistake too
        ({"algorithm": "local", "gfpl.merge": "max"}, ["gfpl.merge = 'max'", "moment, average"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(flat, words):
    with pytest.raises(ConfigError) as error:
        parse_run(flat)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def resolve(flat: dict, num_classes: int | None = 10) -> GFPL:
    config, algorithm = parse_run(flat)
    resolved = algorithm.resolve(config, num_classes)
    assert isinstance(resolved, GFPL)
    return resolved


def test_a_schedule_without_an_exchange_is_refused():
    with pytest.raises(ConfigError, match=r"gfpl.first-exchange = 30: must be <= rounds = 20"):
        resolve({"rounds": 20})
    assert not resolve({"rounds": 20, "gfpl.retraining": False}).retraining


def test_a_projection_too_narrow_for_the_simplex_is_refused():
    flat = {"dataset": "cifar100", "gfpl.projection-dim": 80}  # what the paper's table says
    with pytest.raises(ConfigError, match=r"gfpl.projection-dim = 80: must be >= 99.*100 classes"):
        resolve(flat, 100)
    assert resolve({"dataset": "cifar100"}, 100).projection_dim == 128


def test_a_head_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match="head = 'etf': must be classifier"):
        resolve({"head": "etf", "gfpl.dual-classifier": False})


def test_the_paper_preset_sums_the_distance_unless_told_otherwise():
    assert resolve({}).scale == "mean"
    assert resolve({"preset": "paper"}).scale == "sum"
    assert resolve({"preset": "paper", "gfpl.scale": "mean"}).scale == "mean"


def test_every_partition_can_be_named():
    choices = known_fields()["partition"].metadata["choices"]
    assert set(choices) == {*SCHEMES, "own"}


def test_every_key_has_a_sentence_that_says_what_it_is():
    for key, field in known_fields().items():
        assert field.metadata["help"].endswith("."), key
