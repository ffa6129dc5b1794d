"""An image data set by name: decoded once, memory-mapped from its prepared file ever after."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gfpl_flwr.data.folders import FOLDER, folder_file, read_folder
from gfpl_flwr.data.prepared import preparing, read_prepared, write_prepared
from gfpl_flwr.data.sources import CLASSES, SOURCES, DatasetNotFoundError, Prepared

__all__ = ["DatasetNotFoundError", "ImageDataset", "load", "normalisation"]

_GREY_DIGITS = ((0.1307,), (0.3081,))
_NORMALISATION = {
    "mnist": _GREY_DIGITS,
    "fashion-mnist": _GREY_DIGITS,
    "femnist": ((0.964,), (0.159,)),
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}


def load(
    name: str,
    data_dir: str | Path,
    *,
    image_size: int = 32,
    class_names: tuple[str, ...] | None = None,
    channels: int | None = None,
) -> "ImageDataset":
    """Load a data set, preparing ``<data-dir>/<name>.safetensors`` first where it does not exist yet.

    A file that is already there is used as it is, whatever made it; so a data set of one's own can be put
    there under a name of one's own. The images of ``folder:PATH`` are prepared into
    ``<data-dir>/folder-<hash>.safetensors``, the hash covering path, image size and the listing of the
    folder: a changed folder is prepared anew.

    Args:
        name: ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``femnist``,
            ``folder:PATH`` or the name of a prepared file.
        data_dir: folder of the prepared files, created when needed.
        image_size: pixels a side to which the images of a folder are resized; other data sets keep their own
            size.
        class_names: sub-folders of a ``folder:`` data set in the order of their class numbers; None: those
            there are, sorted. Other data sets have their own numbers.
        channels: 1 or 3, of the images of a folder; None: what they are. Other data sets keep their own.

    Returns:
        The data set; its tensors are views of the file.

    Raises:
        DatasetNotFoundError: when there is no such data set, or it cannot be had on this machine.
        ValueError: when a prepared file or an image is damaged.
    """
    data_dir = Path(data_dir).expanduser().resolve()
    build: Callable[[], Prepared] | None = None  # None for a prepared file of the user's own
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER)).expanduser().resolve()
        path = data_dir / folder_file(folder, image_size=image_size, class_names=class_names, channels=channels)
        build = partial(read_folder, folder, image_size=image_size, class_names=class_names, channels=channels)
    else:
        path = data_dir / f"{name}.safetensors"
        if name in SOURCES:
            build = partial(SOURCES[name], data_dir)
        elif re.fullmatch(r"[\w.-]+", name) is None or not path.is_file():
            raise DatasetNotFoundError(
                f"unknown data set {name!r}: known are {', '.join(sorted(SOURCES))} and folder:PATH, "
                f"and there is no prepared file {path}"
            )
    if build is not None and not path.is_file():
        with preparing(path):
            if not path.is_file():
                _store(path, name, build())
    return _open(path, name)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in units of the full pixel range.

    MNIST, CIFAR-10 (the ImageNet statistics) and CIFAR-100 have FedProto's numbers (arXiv 2105.00243, released
    code); Fashion-MNIST shares MNIST's, FEMNIST has its own. All others map the pixel range to [-1, 1]: one number,
    for every channel.

    DEPARTURE: FedProto gives FEMNIST the numbers of MNIST, whose paper is black. White paper then lies at 2.8, and in
    the middle of a run the features of a site can die at once and stay dead.
    """
    return _NORMALISATION.get(name, ((0.5,), (0.5,)))


def _store(path: Path, name: str, prepared: Prepared) -> None:
    metadata = {"name": name, "num_classes": str(prepared.num_classes)}
    if prepared.class_names is not None:
        metadata["class_names"] = json.dumps(prepared.class_names)
    write_prepared(path, prepared.tensors, metadata)


def _open(path: Path, name: str) -> "ImageDataset":
    tensors, metadata = read_prepared(path)
    try:
        names = tuple(map(str, json.loads(metadata["class_names"]))) if "class_names" in metadata else None
        if "num_classes" in metadata:
            num_classes = int(metadata["num_classes"])
        elif name in CLASSES:
            num_classes = CLASSES[name]
        else:
            labels = torch.cat([tensors["train_labels"], tensors["test_labels"]])
            num_classes = len(names) if names else int(labels.max()) + 1 if len(labels) else 0
        return ImageDataset(name=name, num_classes=num_classes, class_names=names, **tensors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"prepared data set {path}: {error}") from None


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDataset:
    """A labelled image data set with its published training and test split.

    Attributes:
        name: the name it was loaded by.
        train_images: uint8 (N, channels, H, W).
        train_labels: int64 (N,), values 0 to C-1.
        test_images: uint8 (M, channels, H, W); M may be 0.
        test_labels: int64 (M,).
        num_classes: C, whether or not every class has a sample here.
        class_names: C names, where they are known.
        train_writers: int64 (N,), who produced each training sample, where that is known.
        test_writers: int64 (M,), the same for the test split.

    Raises:
        ValueError: when shapes, dtypes, row counts or the range of the labels do not fit together.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    class_names: tuple[str, ...] | None = None
    train_writers: Tensor | None = None
    test_writers: Tensor | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names for {self.num_classes} classes")
        if (self.train_writers is None) != (self.test_writers is None):
            raise ValueError("train_writers and test_writers must be given together")
        self._check_split("train", self.train_images, self.train_labels, self.train_writers)
        self._check_split("test", self.test_images, self.test_labels, self.test_writers)
        if len(self.train_images) == 0:
            raise ValueError("train_images must have at least one row")
        if self.test_images.shape[1:] != self.train_images.shape[1:]:
            raise ValueError(
                f"test_images must have the shape of train_images, {self.image_shape}, "
                f"got {tuple(self.test_images.shape[1:])}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def _check_split(self, split: str, images: Tensor, labels: Tensor, writers: Tensor | None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"{split}_images must be uint8 (N, channels, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        for what, column in ((f"{split}_labels", labels), (f"{split}_writers", writers)):
            if column is None:
                continue
            if column.dtype != torch.int64 or column.shape != (len(images),):
                raise ValueError(
                    f"{what} must be int64 ({len(images)},), one per image, got {column.dtype} {tuple(column.shape)}"
                )
        wrong = torch.nonzero((labels < 0) | (labels >= self.num_classes)).flatten()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{split}_labels must lie in 0 to {self.num_classes - 1}, row {row} has {int(labels[row])}"
            )
