"""Files that survive a power cut: written beside, flushed, renamed, checked when read."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor


class DamagedFileError(ValueError):
    """A file whose content is not what was written."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a restart after a power cut, sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors and facts about them into one safetensors file with a checksum, atomically.

    Args:
        path: of the file.
        tensors: on any device.
        facts: JSON values; read back by :func:`read_tensors`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    metadata = {"facts": text, "sha256": _digest(plain, text)}
    write_atomically(path, save_tensors(plain, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors` and check it.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is torn or its checksum is wrong; names the file.
    """
    data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text, expected = header["facts"], header["sha256"]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from None
    if _digest(tensors, text) != expected:
        raise DamagedFileError(f"{path} is damaged: its checksum is wrong")
    facts: dict[str, Any] = json.loads(text)
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)  # in place: a copy takes as long as the digest
    return digest.hexdigest()
