"""A folder of images as a data set: what a device has.

    PATH/cat/*.jpg  PATH/dog/*.png              the last fifth of every class by file name is the test split
    PATH/train/cat/*.jpg  PATH/test/cat/*.jpg   a test split of one's own

Classes are numbered by the sorted names of the sub-folders. Sites must agree on the numbers, so where a
device may lack a class, either it keeps an empty folder for it or all devices are told the same
``class_names``.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gfpl_flwr.data.prepared import empty_like_images
from gfpl_flwr.data.sources import DatasetNotFoundError, Prepared, last_of_each

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "folder:"
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})
_LAYOUT = "expected PATH/<class>/<image> or PATH/train/<class>/<image> with PATH/test/<class>/<image>"


def folder_file(
    path: Path, *, image_size: int, class_names: tuple[str, ...] | None = None, channels: int | None = None
) -> str:
    """Return the name of the prepared file: it changes with the arguments and with every file of the folder.

    Args:
        path: absolute path of the folder.
        image_size: pixels a side.
        class_names, channels: see :func:`read_folder`.

    Raises:
        DatasetNotFoundError: when there is no such folder.
    """
    if not path.is_dir():
        raise DatasetNotFoundError(f"data set 'folder:{path}' is not on this machine: no such folder; {_LAYOUT}")
    digest = hashlib.sha256(f"{path}\n{image_size}\n{class_names}\n{channels or ''}\n".encode())
    for entry in sorted(path.rglob("*")):
        status = entry.stat() if entry.is_file() else None
        stamp = f"{status.st_size} {status.st_mtime_ns}" if status else "folder"
        digest.update(f"{entry.relative_to(path).as_posix()}\0{stamp}\n".encode())
    return f"folder-{digest.hexdigest()[:16]}.safetensors"


def read_folder(
    path: Path, *, image_size: int, class_names: tuple[str, ...] | None = None, channels: int | None = None
) -> Prepared:
    """Decode every image of a folder, resized to a square.

    Unless told otherwise, all images become grey if every one of them is grey, RGB otherwise. Their orientation tag
    is honoured, their aspect ratio is not kept, transparency is dropped.

    Args:
        path: the folder, laid out as the module says.
        image_size: pixels a side.
        class_names: sub-folders in the order of their class numbers, those without an image included; None:
            the sub-folders there are, sorted.
        channels: 1 for grey images, 3 for RGB; None: what the images are.

    Raises:
        DatasetNotFoundError: when the folder holds no class or no image.
        ValueError: when an image cannot be read, or a sub-folder is not among ``class_names``.
    """
    train_root, test_root = _roots(path)
    names = _numbered(path, [root for root in (train_root, test_root) if root is not None], class_names)
    train, test = _listing(train_root, names), _listing(test_root, names)
    if not train:
        raise DatasetNotFoundError(f"data set 'folder:{path}' has no image in {train_root}; {_LAYOUT}")
    grey = channels == 1 if channels else all(_is_grey(file) for file, _ in train + test)
    images, labels = _decode(train, image_size, grey=grey)
    if test_root is not None:
        test_images, test_labels = _decode(test, image_size, grey=grey) if test else empty_like_images(images)
    else:
        held_out = last_of_each(labels, 5)
        test_images, test_labels = images[held_out], labels[held_out]
        images, labels = images[~held_out], labels[~held_out]
    tensors = {
        "train_images": images,
        "train_labels": labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }
    return Prepared(tensors, len(names), names)


def _sub_folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _roots(path: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and the test split; look inside, "train" may be a class."""
    train, test = path / "train", path / "test"
    if train.is_dir() and _sub_folders(train):
        return train, test if test.is_dir() else None
    return path, None


def _numbered(path: Path, roots: list[Path], class_names: tuple[str, ...] | None) -> tuple[str, ...]:
    found = sorted({folder.name for root in roots for folder in _sub_folders(root)})
    if not found:
        raise DatasetNotFoundError(f"data set 'folder:{path}' has no class folder; {_LAYOUT}")
    if class_names is None:
        return tuple(found)
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names must name each class once, got {', '.join(class_names)}")
    if unlisted := [name for name in found if name not in class_names]:
        raise ValueError(
            f"data set 'folder:{path}' has a folder {unlisted[0]!r} that is not among class_names: "
            f"{', '.join(class_names)}"
        )
    return class_names


def _listing(root: Path | None, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """List the images of a split with their labels, by class and then by name."""
    if root is None:
        return []
    return [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def _opened(file: Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {file}: {_one_line(error)}") from None


def _is_grey(file: Path) -> bool:
    with _opened(file) as image:  # the header only
        return image.mode in _GREY_MODES


def _decode(files: list[tuple[Path, int]], size: int, *, grey: bool) -> tuple[Tensor, Tensor]:
    pixels = np.empty((len(files), 1 if grey else 3, size, size), np.uint8)
    for row, (file, _) in enumerate(files):
        with _opened(file) as image:
            try:
                decoded = _square(image, size, mode="L" if grey else "RGB")
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises all three for damaged data
                raise ValueError(f"cannot read image {file}: {_one_line(error)}") from None
        pixels[row] = decoded[None] if grey else decoded.transpose(2, 0, 1)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return torch.from_numpy(pixels), labels


def _square(image: "Image", size: int, *, mode: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        # Converting 16 bits to 8 clips in PIL; the high byte is the picture.
        upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
    converted = upright.convert(mode)
    if converted.size != (size, size):
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(converted)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
