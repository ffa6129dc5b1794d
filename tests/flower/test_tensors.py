"""Tensors travel bit for bit, at the price of their numbers."""

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from gfpl_flwr.core.compression import PRECISIONS, compress
from gfpl_flwr.core.prototypes import GaussianPrototypes
from gfpl_flwr.flower.tensors import DTYPES, RAW, decode_tensors, encode_tensors, size_of


@pytest.fixture(autouse=True)
def _inside_a_run():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_tensors_travel_bit_for_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(-100, 100, shape, generator=generator).to(DTYPES[dtype])
    back = decode_tensors(encode_tensors({"x": tensor}))["x"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_special_values_survive():
    tensor = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45], dtype=torch.float32)
    back = decode_tensors(encode_tensors({"x": tensor}))["x"]
    assert back.numpy().tobytes() == tensor.numpy().tobytes()


def test_a_dtype_that_does_not_travel_is_named():
    with pytest.raises(ValueError, match="'x' has dtype bfloat16"):
        encode_tensors({"x": torch.zeros(1, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (
            Array(dtype="float32", shape=(10**9, 10**4), stype=RAW, data=b"1234"),
            "40000000000000 bytes, but holds 4",
        ),
        (Array(dtype="float32", shape=(-1, -1), stype=RAW, data=b"1234"), "sides must be integers >= 0"),
        (Array(dtype="float32", shape=(2**31,) * 500, stype=RAW, data=b"1234"), "500 dimensions; allowed: 16"),
        (Array(dtype="object", shape=(1,), stype=RAW, data=b"1234"), "'object'"),
        (Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"1234"), "numpy.ndarray"),
        (Array(dtype="float32", shape=(2,), stype=RAW, data=b"1234"), "8 bytes, but holds 4"),
    ],
)
def test_an_array_that_lies_about_itself_is_refused(array, words):
    with pytest.raises(ValueError, match=words):
        decode_tensors(ArrayRecord({"x": array}))


def test_sizes_are_those_of_flowers_objects():
    message = Message(RecordDict({"arrays": encode_tensors({"means": torch.randn(3, 5)})}), 2, "train")
    size = size_of(message)
    # (3, 5) float32 is 60 bytes; its name "means" 5
    assert (size.arrays, size.scalars) == (65, 15)

    def sent(piece) -> int:
        return len(piece.deflate()) + sum(sent(child) for child in (piece.children or {}).values())

    assert size.message == sent(message.content)
    assert size.message > size.arrays
    assert size_of(Message(RecordDict(), 2, "train")).arrays == 0


def test_scalars_are_counted_from_bytes_and_not_from_what_a_shape_claims():
    shapes = {"huge": (2**31,) * 500, "negative": (-7, 9), "true": (2,)}
    arrays = {
        name: Array(dtype="float32", shape=shape, stype=RAW, data=b"12345678") for name, shape in shapes.items()
    }
    arrays["unknown"] = Array(dtype="rubbish", shape=(2,), stype=RAW, data=b"12345678")
    assert size_of(Message(RecordDict({"arrays": ArrayRecord(arrays)}), 2, "train")).scalars == 6


@pytest.mark.parametrize(("rows", "dim"), [(7, 50), (4, 50), (10, 512), (70, 50)])
@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", lambda n, d: 4 * n * (2 * d + 1) + 8 * n),  # float32 count, mean and variance; int64 label
        ("float16", lambda n, d: 2 * n * 2 * d + 4 * n + n),  # float16 mean and log-variance; float32 count; uint8
        ("int8", lambda n, d: n * 2 * d + 4 * 4 * n + 4 * n + n),  # int8; four float32 of scales; count; label
    ],
)
def test_prototypes_cost_their_numbers_and_hardly_more(precision, expected, rows, dim):
    bank = GaussianPrototypes(
        torch.arange(rows), torch.ones(rows), torch.randn(rows, dim), torch.rand(rows, dim) + 0.1
    )
    size = size_of(Message(RecordDict({"arrays": encode_tensors(compress(bank, precision))}), 2, "train"))
    numbers = expected(rows, dim)
    assert numbers <= size.arrays <= numbers + 36  # their names: 36 letters at most
    if precision == "float32":
        assert size.arrays <= 1.05 * numbers


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_compressed_prototypes_travel_bit_for_bit(precision):
    bank = GaussianPrototypes(torch.arange(9), torch.rand(9) + 1, torch.randn(9, 50), torch.rand(9, 50) + 0.1)
    sent = compress(bank, precision)
    got = decode_tensors(encode_tensors(sent))
    assert got.keys() == sent.keys()
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)
