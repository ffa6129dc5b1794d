"""Named tensors as raw bytes, and what a message weighs.

Flower packs an array as a ``.npy`` file, 128 bytes of header each; for a site with seven components of 50
dimensions that is a fifth of the message. Here an array is its bare little-endian bytes, and dtype, shape and
byte count are compared before a tensor is made of them. So a header cannot claim more than what came, which Flower
holds in memory by then.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from torch import Tensor

RAW = "gfpl.raw"
"""Flower's name for how an array is serialised."""

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "bool": torch.bool,
}
MOST_DIMENSIONS = 16
"""Of an array: more than any tensor of a model has, few enough for their product to be taken."""


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors, bit for bit.

    Raises:
        ValueError: a dtype that does not travel.
    """
    packed = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {dtype}; allowed: {', '.join(DTYPES)}")
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        packed[name] = Array(dtype=dtype, shape=tuple(tensor.shape), stype=RAW, data=little.tobytes())
    return ArrayRecord(packed)


def decode_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Unpack named tensors.

    Raises:
        ValueError: an array of another serialisation or dtype, of too many dimensions, or whose bytes do not fit its
            shape.
    """
    tensors = {}
    for name, array in record.items():
        if array.stype != RAW or array.dtype not in DTYPES:
            raise ValueError(
                f"array {name!r} is {array.stype!r} of {array.dtype!r}; expected {RAW!r} of {', '.join(DTYPES)}"
            )
        shape = tuple(array.shape)
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"array {name!r} has {len(shape)} dimensions; allowed: {MOST_DIMENSIONS}")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"array {name!r} has shape {shape}; sides must be integers >= 0")
        expected = math.prod(shape) * np.dtype(array.dtype).itemsize
        if len(array.data) != expected:
            raise ValueError(
                f"array {name!r} claims {array.dtype} {shape}, {expected} bytes, but holds {len(array.data)} bytes"
            )
        values = np.frombuffer(array.data, np.dtype(array.dtype).newbyteorder("<")).reshape(shape)
        tensors[name] = torch.from_numpy(values.astype(array.dtype, copy=True))
    return tensors


@dataclass(frozen=True)
class Size:
    """Bytes of a message.

    Attributes:
        message: every object that Flower transmits for the content: arrays, bookkeeping and their framing.
        arrays: the tensors alone, their names included (Flower's ``ArrayRecord.count_bytes``).
        scalars: numbers in the tensors, by their bytes; 0 for a dtype that does not travel.
    """

    message: int = 0
    arrays: int = 0
    scalars: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.message + other.message, self.arrays + other.arrays, self.scalars + other.scalars)


def size_of(message: Message) -> Size:
    """Measure a message as Flower serialises it: the sum over the objects it is cut into."""
    if not message.has_content():
        return Size()
    content = message.content
    return sum(sizes_of(content).values(), Size(message=len(content.deflate())))


def sizes_of(content: RecordDict) -> dict[str, Size]:
    """Measure each record of a message, by its name; one that equals an earlier one is not transmitted again."""
    sizes: dict[str, Size] = {}
    seen: set[str] = set()
    for name, record in content.items():
        size = Size() if record.object_id in seen else Size(message=_object_bytes(record))
        seen.add(record.object_id)
        if isinstance(record, ArrayRecord):
            size += Size(arrays=record.count_bytes(), scalars=sum(map(_scalars, record.values())))
            for array in record.values():
                # Flower keeps views of the pieces in the array, which then cannot go to another process.
                array.__dict__.pop("_chunks", None)
        sizes[name] = size
    return sizes


def _scalars(array: Array) -> int:
    # Counted from the bytes that came: a shape is nothing but a claim, and can be one of 500 sides of 2**31.
    return len(array.data) // np.dtype(array.dtype).itemsize if array.dtype in DTYPES else 0


def _object_bytes(piece: object) -> int:
    children = getattr(piece, "children", None) or {}
    return len(piece.deflate()) + sum(_object_bytes(child) for child in children.values())  # type: ignore[attr-defined]
