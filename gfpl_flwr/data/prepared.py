"""The one file format of a data set: safetensors, written once and atomically, memory-mapped ever after.

============  =====  ==================  =========================================
tensor        dtype  shape               content
============  =====  ==================  =========================================
train_images  uint8  (N, channels, H, W)  pixels, 0 to 255
train_labels  int64  (N,)                 class numbers, 0 to C-1
test_images   uint8  (M, channels, H, W)
test_labels   int64  (M,)
train_writers int64  (N,)                 optional: who produced the sample
test_writers  int64  (M,)                 optional, together with train_writers
============  =====  ==================  =========================================
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

REQUIRED = {"train_images": "U8", "train_labels": "I64", "test_images": "U8", "test_labels": "I64"}
OPTIONAL = {"train_writers": "I64", "test_writers": "I64"}
_TORCH_NAMES = {"U8": "uint8", "I64": "int64"}


def read_prepared(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a prepared file into memory.

    No pixel is read here: safetensors hands out views of a private mapping of the file, so a page of it costs
    memory only once it is touched, and the operating system may drop it again at any time.

    Args:
        path: the safetensors file.

    Returns:
        The tensors of the table above, and the file's metadata.

    Raises:
        ValueError: when the file is truncated or no safetensors file, or a tensor is missing or of another
            dtype.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            present = set(file.keys())
            if missing := [name for name in REQUIRED if name not in present]:
                raise ValueError(
                    f"prepared data set {path} lacks tensor {', '.join(missing)}; it has {', '.join(sorted(present))}"
                )
            wanted = {name: dtype for name, dtype in (REQUIRED | OPTIONAL).items() if name in present}
            for name, dtype in wanted.items():
                if (found := file.get_slice(name).get_dtype()) != dtype:
                    raise ValueError(f"prepared data set {path}: {name} must be {_TORCH_NAMES[dtype]}, it is {found}")
            return {name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"prepared data set {path} cannot be read, it is truncated or no safetensors file ({error}); "
            "delete it to have it prepared again"
        ) from None


def write_prepared(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a prepared file so that no reader ever sees a part of it.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take their final name in
    one step. Of several processes writing at once the last one wins and all leave a whole file.

    Args:
        path: final name of the file; its folder is created.
        tensors: the tensors of the table above.
        metadata: short strings that go into the header.

    Raises:
        ValueError: when the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".safetensors.partial")
        os.close(handle)
        temporary = Path(name)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, dict(metadata))
        # mkstemp makes files for their owner only, but a data folder is often shared between accounts.
        temporary.chmod(0o644)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot write the prepared data set {path}: {error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def preparing(path: Path) -> Iterator[None]:
    """Hold the right to prepare a file, so that of many processes on one machine a single one does the work.

    Only a saving: where locks do not exist (Windows, some network file systems) every process prepares the
    file for itself and :func:`write_prepared` keeps that safe. The lock ends with the process that holds it.

    Raises:
        ValueError: when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.stem}.lock").open("w")
    except OSError as error:
        raise ValueError(f"cannot write the prepared data set {path}: {error}") from None
    with lock:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def empty_like_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (0, channels, H, W) and labels (0,): the test split of a data set that has none."""
    return images.new_empty((0, *images.shape[1:])), torch.empty(0, dtype=torch.int64)
