"""Where the named data sets come from: each decodes its published form once into the prepared tensors."""

import contextlib
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONNECT_SECONDS = 5.0
STALL_SECONDS = 30.0
CLASSES = {"digits": 10, "mnist": 10, "fashion-mnist": 10, "cifar10": 10, "cifar100": 100, "femnist": 62}
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class DatasetNotFoundError(ValueError):
    """A data set that is not on this machine and cannot be had; the message says how to get it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a source hands over to be written: the tensors of the prepared file and what its header says.

    Attributes:
        tensors: see :mod:`gfpl_flwr.data.prepared`.
        num_classes: C.
        class_names: C names, where they are known.
    """

    tensors: dict[str, Tensor]
    num_classes: int
    class_names: tuple[str, ...] | None = None


@contextlib.contextmanager
def _installed(name: str, package: str, data_dir: Path) -> Iterator[None]:
    """Say how to get a data set where the package that it comes from is not there, as on a device."""
    try:
        yield
    except ImportError:
        raise DatasetNotFoundError(
            f"data set {name!r} comes with {package}, which is not installed here; elsewhere run "
            f"`gfpl data --quiet -c dataset={name}` and copy data/{name}.safetensors to {data_dir}"
        ) from None


def digits(data_dir: Path) -> Prepared:
    """Decode scikit-learn's bundled digits: 1,797 images of 8 x 8 pixels in 17 grey levels, 10 classes.

    Of every class the last quarter in published order is the test split. The 17 grey levels, 0 to 16, are
    spread over 0 to 255 and rounded.
    """
    with _installed("digits", "scikit-learn", data_dir):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return Prepared(_split_rows(images, labels, last_of_each(labels, 4)), 10, tuple("0123456789"))


def last_of_each(groups: Tensor, parts: int) -> Tensor:
    """Return a boolean mask (N,) of the last ``1/parts`` of every group, in the order of the rows.

    A group of two or more rows gives at least one; a group of one row gives none.
    """
    mask = torch.zeros(len(groups), dtype=torch.bool)
    for group in torch.unique(groups):
        rows = torch.nonzero(groups == group).flatten()
        size = max(len(rows) // parts, 1) if len(rows) > 1 else 0
        mask[rows[len(rows) - size :]] = True
    return mask


def _split_rows(images: Tensor, labels: Tensor, test: Tensor) -> dict[str, Tensor]:
    return {
        "train_images": images[~test],
        "train_labels": labels[~test],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def _from_torchvision(name: str, class_name: str, data_dir: Path) -> Prepared:
    """Decode a torchvision data set: raw files under ``data_dir`` if they are there, else a download."""
    with _installed(name, "torchvision", data_dir):
        from torchvision import datasets

    source = getattr(datasets, class_name)
    splits = None
    with contextlib.suppress(RuntimeError, OSError):
        splits = _both_splits(source, data_dir, download=False)
    if splits is None:
        splits = _download(name, source, data_dir)
    tensors: dict[str, Tensor] = {}
    for split, data in zip(("train", "test"), splits, strict=True):
        images = torch.as_tensor(data.data)
        # MNIST's files hold grey images without a channel axis, CIFAR's hold channels last.
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        tensors[f"{split}_images"] = images.contiguous()
        tensors[f"{split}_labels"] = torch.as_tensor(data.targets, dtype=torch.int64)
    return Prepared(tensors, CLASSES[name], tuple(map(str, splits[0].classes)))


def _both_splits(source: Any, root: Path, *, download: bool) -> tuple[Any, Any]:
    return source(root, train=True, download=download), source(root, train=False, download=download)


def _download(name: str, source: Any, data_dir: Path) -> tuple[Any, Any]:
    urls = [mirror + source.resources[0][0] for mirror in getattr(source, "mirrors", ())] or [source.url]
    missing = (
        f"data set {name!r} is not on this machine: looked for {data_dir / name}.safetensors and for "
        f"torchvision's files of {source.__name__} under {data_dir}. "
    )
    advice = (
        "On a machine with network access run "
        f"python -c \"from gfpl_flwr.data.datasets import load; load('{name}', 'DIR')\" "
        f"and copy DIR/{name}.safetensors to {data_dir}, or use the data set digits, which needs no download."
    )
    if not any(map(_answers, urls)):
        raise DatasetNotFoundError(f"{missing}Its download server cannot be reached from here. {advice}")
    try:
        # A folder of its own for each process: two downloads into one folder would damage each other.
        with (
            tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{name}.") as root,
            _socket_timeout(STALL_SECONDS),
        ):
            return _both_splits(source, Path(root), download=True)
    except (RuntimeError, OSError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetNotFoundError(f"{missing}The download failed: {cause[-1]}. {advice}") from None


def _answers(url: str) -> bool:
    """Say whether a server answers at all; torchvision itself would wait for it without limit."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let a stalled download fail: torchvision offers no other way to set a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def femnist(data_dir: Path) -> Prepared:
    """Decode FEMNIST (``flwrlabs/femnist``): 814,277 characters of 28 x 28 pixels by 3,597 writers, 62
    classes.

    Labels are 0-9 for digits, 10-35 for capitals, 36-61 for small letters; 255 is paper. The publishers have
    no test split: 15 % of every writer's samples, evenly spaced in published order, become one.
    """
    missing = f"data set 'femnist' is not on this machine: looked for {data_dir / 'femnist.safetensors'}. "
    try:
        from flwr_datasets import FederatedDataset
    except ImportError:
        raise DatasetNotFoundError(
            f"{missing}To download it: pip install 'gfpl-flwr[hub]' (package flwr-datasets), "
            "or copy a prepared femnist.safetensors there."
        ) from None
    try:
        published = FederatedDataset(dataset="flwrlabs/femnist", partitioners={"train": 1}, shuffle=False)
        rows = published.load_split("train")
    except Exception as error:  # flwr-datasets passes on whatever its several network libraries raise
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetNotFoundError(
            f"{missing}The download failed: {cause[0]}. Copy a prepared femnist.safetensors there, "
            "or run once with network access."
        ) from None
    return prepare_femnist(rows)


def prepare_femnist(rows: Collection[Mapping[str, Any]]) -> Prepared:
    """Turn the rows of ``flwrlabs/femnist`` into prepared tensors; see :func:`femnist`.

    Args:
        rows: each with ``image`` (PIL, 28 x 28 pixels), ``character`` (0 to 61) and ``writer_id`` (such as
            ``f0000_14``; writers are numbered in alphabetical order).
    """
    pixels = np.empty((len(rows), 1, 28, 28), np.uint8)
    characters, writers = np.empty(len(rows), np.int64), []
    for row, sample in enumerate(rows):
        pixels[row, 0] = np.asarray(sample["image"].convert("L"))
        characters[row] = sample["character"]
        writers.append(sample["writer_id"])
    _, numbers = np.unique(np.asarray(writers), return_inverse=True)
    test = np.zeros(len(rows), bool)
    for writer in range(int(numbers.max()) + 1):
        own = np.flatnonzero(numbers == writer)
        count = round(0.15 * len(own))
        test[own[(2 * np.arange(count) + 1) * len(own) // (2 * max(count, 1))]] = True
    held_out, who = torch.from_numpy(test), torch.from_numpy(numbers.astype(np.int64))
    tensors = _split_rows(torch.from_numpy(pixels), torch.from_numpy(characters), held_out)
    tensors |= {"train_writers": who[~held_out], "test_writers": who[held_out]}
    return Prepared(tensors, 62, tuple(CHARACTERS))


# The published names are torchvision's class names.
SOURCES: dict[str, Callable[[Path], Prepared]] = {
    "digits": digits,
    "mnist": lambda data_dir: _from_torchvision("mnist", "MNIST", data_dir),
    "fashion-mnist": lambda data_dir: _from_torchvision("fashion-mnist", "FashionMNIST", data_dir),
    "cifar10": lambda data_dir: _from_torchvision("cifar10", "CIFAR10", data_dir),
    "cifar100": lambda data_dir: _from_torchvision("cifar100", "CIFAR100", data_dir),
    "femnist": femnist,
}
