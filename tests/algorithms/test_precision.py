"""Prototypes travel in the precision that was asked for, and nothing but what travels is compressed."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Reply
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.algorithms.local import Local
from gfpl_flwr.core.compression import PRECISIONS, compress, decompress
from gfpl_flwr.core.prototypes import GaussianPrototypes

ALL = sorted(PRECISIONS)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def gfpl(precision: str, **options) -> GFPL:
    config, algorithm = parse_run({"gfpl.precision": precision, **options})
    resolved = algorithm.resolve(config, 10)
    assert isinstance(resolved, GFPL)
    return resolved


def bank_of(labels, counts, means, variances=None) -> GaussianPrototypes:
    means = torch.tensor(means)
    variances = torch.ones_like(means) if variances is None else torch.tensor(variances)
    return GaussianPrototypes(torch.tensor(labels), torch.tensor(counts), means, variances)


def reply_of(bank: GaussianPrototypes, precision: str, **arrays) -> Reply:
    return Reply(compress(bank, precision) | arrays, 40)


@pytest.mark.parametrize("precision", ALL)
def test_two_sites_fused_by_hand(precision):
    """Means 0 and 1, variances 1, counts 30 and 10: 0.125 nats apart, merged to mean 0.25, variance 1.1875.

    float16 holds 0, 1 and log 1 exactly; int8 is off by at most 2^-15 where a row has one value.
    """
    algorithm = gfpl(precision)
    replies = [reply_of(bank_of([0], [30.0], [[0.0]]), precision), reply_of(bank_of([0], [10.0], [[1.0]]), precision)]
    state = algorithm.aggregate({}, replies)
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "labels": torch.int64,
        "counts": torch.float32,
        "means": torch.float32,
        "variances": torch.float32,
    }
    assert state["counts"].tolist() == [40]
    assert state["means"].tolist() == [[pytest.approx(0.25, rel=1e-4)]]
    assert state["variances"].tolist() == [[pytest.approx(1.1875, rel=1e-4)]]
    told = algorithm.describe(state, replies)
    assert told is not None
    assert (told["components_in"], told["components_out"], told["by_class"]) == (2, 1, {"0": [2, 1]})


@pytest.mark.parametrize("precision", ALL)
def test_the_state_goes_down_compressed_and_stays_as_it_is(precision):
    algorithm = gfpl(precision)
    bank = bank_of([3, 1], [30.0, 2.5], [[0.0, 0.1, 5.0], [0.0, 0.0, 0.3]], [[0.1, 1e-4, 2.0], [1e-6, 0.5, 0.01]])
    state = bank.to_tensors()
    down = algorithm.downlink(state)
    assert tuple(down) == PRECISIONS[precision]
    assert down["means"].dtype == DTYPES[precision]
    assert all(torch.equal(state[name], tensor) for name, tensor in bank.to_tensors().items())
    back = decompress(down, precision)
    assert torch.equal(back.counts, bank.counts)
    assert torch.allclose(back.means, bank.means, atol=5 / 254 / 2 + 1e-6)


@pytest.mark.parametrize("precision", ALL)
def test_before_any_prototype_came_nothing_goes_down(precision):
    assert gfpl(precision).downlink({}) == {}


def test_an_algorithm_hands_down_its_state_unless_it_says_otherwise():
    state = {"x": torch.arange(3)}
    assert Local().downlink(state) == state


@pytest.mark.parametrize("agreed", ALL)
@pytest.mark.parametrize("sent", ALL)
def test_the_server_accepts_the_precision_of_the_run_alone(agreed, sent):
    reply = reply_of(bank_of([0], [3.0], [[0.0, 1.0, 2.0]]), sent)
    if sent == agreed:
        gfpl(agreed).check_reply(reply, state={}, feature_dim=3, num_classes=10)
    else:
        with pytest.raises(ValueError, match=r"missing|must be torch"):
            gfpl(agreed).check_reply(reply, state={}, feature_dim=3, num_classes=10)


def scales(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


@pytest.mark.parametrize(
    ("precision", "arrays", "words"),
    [
        ("int8", {"scales": scales(1e5, -128, 1, -128)}, r"means must be finite and at most 1e\+06"),
        ("int8", {"scales": scales(1, -128, 1, -150)}, r"variances must be finite and at most 1e\+09"),
        (
            "float16",
            {"log_variances": torch.full((1, 3), 21.0).half()},
            r"variances must be finite and at most 1e\+09",
        ),
        ("int8", {"scales": scales(1, -128, 1, math.nan)}, r"scales must be finite"),
        ("float16", {"counts": torch.tensor([41.0])}, r"components count 41 samples, the site has 40"),
        ("float16", {"labels": torch.tensor([10], dtype=torch.uint8)}, r"labels must be below 10"),
        ("int8", {"labels": torch.tensor([-1], dtype=torch.int32)}, r"labels must be >= 0"),
        ("int8", {"weights": torch.ones(1)}, r"unknown \['weights'\]"),
    ],
)
def test_a_compressed_reply_is_checked_like_any_other(precision, arrays, words):
    bank = bank_of([0], [3.0], [[0.0, 1.0, 254.0]])
    with pytest.raises(ValueError, match=words):
        gfpl(precision).check_reply(reply_of(bank, precision, **arrays), state={}, feature_dim=3, num_classes=10)


@pytest.mark.parametrize("precision", ALL)
def test_another_dimension_is_refused(precision):
    reply = reply_of(bank_of([0], [3.0], [[0.0, 1.0]]), precision)
    with pytest.raises(ValueError, match="3 dimensions, these have 2"):
        gfpl(precision).check_reply(reply, state={}, feature_dim=3, num_classes=10)


@pytest.mark.parametrize("precision", ALL)
def test_a_site_without_prototypes_can_answer(precision):
    algorithm = gfpl(precision)
    reply = reply_of(GaussianPrototypes.empty(3), precision)
    algorithm.check_reply(reply, state={}, feature_dim=3, num_classes=10)
    assert algorithm.aggregate({}, [reply]) == {}


# ---- a whole run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_run_learns_as_well_and_keeps_float32(federate, precision):
    from gfpl_flwr.report import read_run

    exact, small = read_run(federate("exact")), federate("small", gfpl__precision=precision)
    state = load_file(small / "prototypes.safetensors")
    assert set(state) == set(PRECISIONS["float32"])
    assert state["means"].dtype == state["variances"].dtype == torch.float32
    run = read_run(small)
    assert run.failures == []
    assert run.final_accuracy("classifier").mean == pytest.approx(exact.final_accuracy("classifier").mean, abs=0.1)
    # What was sent before the first fused prototypes came down is the same to the last sample.
    assert run.merges[0].components_in == exact.merges[0].components_in
    ratio = {"float16": 205 / 412, "int8": 121 / 412}[precision]  # bytes of a row of 50 dimensions
    first, first_exact = run.visits[0].traffic["array_bytes_up"], exact.visits[0].traffic["array_bytes_up"]
    assert first / first_exact == pytest.approx(ratio, abs=0.05)


def test_the_precision_of_a_run_cannot_change_when_it_is_resumed(federate):
    from gfpl_flwr.config import ConfigError

    federate("run")
    with pytest.raises(ConfigError, match=r"gfpl.precision = 'int8' \(was 'float32'\)"):
        federate("run", resume=True, gfpl__precision="int8")


def test_the_precision_is_an_option_with_three_values():
    assert (
        dataclasses.replace(gfpl("int8"), precision="float32") == gfpl("float32") == gfpl("float32", preset="default")
    )
    assert GFPL().precision == "float32"
