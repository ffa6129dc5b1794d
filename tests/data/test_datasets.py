import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gfpl_flwr.data import datasets
from gfpl_flwr.data.datasets import DatasetNotFoundError, ImageDataset, load
from gfpl_flwr.data.prepared import write_prepared


def dataset_of(tensors: dict[str, Tensor]) -> ImageDataset:
    return ImageDataset(name="small", num_classes=3, **tensors)


def test_a_valid_data_set_knows_its_shape(small_tensors):
    assert dataset_of(small_tensors).image_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": torch.zeros(6, 1, 4, 4)}, "train_images must be uint8"),
        ({"train_images": torch.zeros(6, 4, 4, dtype=torch.uint8)}, "train_images must be uint8"),
        ({"train_labels": torch.zeros(5, dtype=torch.int64)}, r"train_labels must be int64 \(6,\).*\(5,\)"),
        ({"train_labels": torch.zeros(6, dtype=torch.int32)}, "train_labels must be int64.*int32"),
        ({"train_labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "must lie in 0 to 2, row 3 has 3"),
        ({"test_labels": torch.tensor([0, -1, 2])}, "test_labels must lie in 0 to 2, row 1 has -1"),
        ({"test_images": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)}, r"test_images.*1, 4, 4.*3, 4, 4"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"class_names": ("a", "b")}, "class_names has 2 names for 3 classes"),
        ({"train_writers": torch.zeros(6, dtype=torch.int64)}, "must be given together"),
        (
            {
                "train_writers": torch.zeros(6, dtype=torch.int64),
                "test_writers": torch.zeros(2, dtype=torch.int64),
            },
            r"test_writers must be int64 \(3,\)",
        ),
        (
            {
                "train_images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
                "train_labels": torch.zeros(0).long(),
            },
            "at least one row",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(small_tensors, change, message):
    with pytest.raises(ValueError, match=message):
        replace(dataset_of(small_tensors), **change)


def test_an_empty_test_split_is_allowed(small_tensors, tmp_path):
    small_tensors |= {
        "test_images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
        "test_labels": torch.zeros(0).long(),
    }
    write_prepared(tmp_path / "own.safetensors", small_tensors, {})
    assert load("own", tmp_path).test_images.shape == (0, 1, 4, 4)


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    published = load_digits()
    for label in range(10):
        rows = np.flatnonzero(published.target == label)
        # the last quarter of the class, rounded down, is the test split
        kept = rows[: len(rows) - len(rows) // 4]
        ours = digits.train_images[digits.train_labels == label]
        # 16 grey steps span 0..255: a step is 15.9375, so dividing by it and rounding gives the level back
        assert np.array_equal(np.rint(ours[:, 0].numpy() / 15.9375), published.images[kept])
        theirs = digits.test_images[digits.test_labels == label]
        assert np.array_equal(np.rint(theirs[:, 0].numpy() / 15.9375), published.images[rows[len(kept) :]])
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    assert digits.num_classes == 10


def test_a_data_set_is_decoded_once(tmp_path, monkeypatch):
    first = load("digits", tmp_path)
    monkeypatch.setitem(datasets.SOURCES, "digits", lambda _: pytest.fail("decoded again"))
    second = load("digits", tmp_path)
    assert torch.equal(first.train_images, second.train_images)
    assert second.class_names == tuple("0123456789")


def test_a_prepared_file_is_used_as_it_is(tmp_path, small_tensors):
    write_prepared(tmp_path / "mnist.safetensors", small_tensors, {"name": "mnist"})
    found = load("mnist", tmp_path)
    assert found.num_classes == 10
    assert torch.equal(found.test_images, small_tensors["test_images"])


def test_a_prepared_file_of_ones_own_needs_no_metadata(tmp_path, small_tensors):
    write_prepared(tmp_path / "own.safetensors", small_tensors, {})
    assert load("own", tmp_path).num_classes == 3


def test_a_prepared_file_with_labels_out_of_range_names_file_and_row(tmp_path, small_tensors):
    small_tensors["train_labels"][4] = 10
    write_prepared(tmp_path / "mnist.safetensors", small_tensors, {})
    with pytest.raises(ValueError, match=r"mnist\.safetensors: train_labels must lie .* row 4 has 10"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnits", "../mnist", ""])
def test_an_unknown_name_lists_the_known(tmp_path, name):
    with pytest.raises(DatasetNotFoundError, match=r"cifar10, cifar100, digits, .*folder:PATH"):
        load(name, tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's list of memory mappings")
def test_only_the_images_that_are_used_enter_memory(tmp_path):
    rows = 12_000  # of 3,072 bytes: 36.9 MB
    tensors = {
        "train_images": torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8),
        "train_labels": torch.zeros(rows, dtype=torch.int64),
        "test_images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        "test_labels": torch.zeros(1, dtype=torch.int64),
    }
    path = tmp_path / "large.safetensors"
    write_prepared(path, tensors, {})
    dataset = load("large", tmp_path)

    def resident() -> int:
        """Bytes of the file in this process's memory; the mapping must hold the tensor."""
        total, inside, found = 0, False, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)", line):
                inside = header[3] == str(path)
                found |= inside and int(header[1], 16) <= dataset.train_images.data_ptr() < int(header[2], 16)
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
        assert found
        return total

    assert resident() < 2e6
    dataset.train_images[torch.arange(100)].sum()
    assert resident() < 4e6
    dataset.train_images.sum()
    assert resident() > 30e6  # so the figures above do measure something


def test_the_package_imports_without_what_a_small_device_lacks():
    heavy = ("sklearn", "torchvision", "PIL", "flwr", "flwr_datasets", "scipy")
    code = f"import sys, gfpl_flwr.data; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "classes"),
    [
        ("mnist", (1, 28, 28), 60_000, 10_000, 10),
        ("cifar10", (3, 32, 32), 50_000, 5_000, 10),
        ("cifar100", (3, 32, 32), 30_000, 5_000, 100),
        ("femnist", (1, 28, 28), None, None, 62),
    ],
)
def test_published_data_sets_load_from_prepared_files(real_data, name, shape, train, test, classes):
    dataset = real_data(name)
    assert dataset.image_shape == shape
    assert dataset.num_classes == classes
    assert len(torch.unique(dataset.train_labels)) == classes
    if train is not None:
        assert (len(dataset.train_images), len(dataset.test_images)) == (train, test)
    else:
        assert len(torch.unique(dataset.train_writers)) == 500


def test_mnists_published_mean_and_deviation(real_data):
    pixels = real_data("mnist").train_images.double() / 255
    # torchvision's 0.1307 and 0.3081 are the statistics of the training split
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)
