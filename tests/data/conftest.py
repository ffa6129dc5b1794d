import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gfpl_flwr.data.datasets import ImageDataset, load

UNPACK = Path(__file__).parents[3] / "shared" / "data" / "unpack.py"
"""A script that may lie beside the checkout and prepares published data sets without a network."""


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ImageDataset]:
    """Load a published data set from GFPL_TEST_DATA or from beside the checkout, or skip the test."""
    folder = Path(os.environ.get("GFPL_TEST_DATA") or tmp_path_factory.mktemp("published"))

    def open_or_skip(name: str) -> ImageDataset:
        prepared = folder / f"{name}.safetensors"
        if not prepared.is_file() and "GFPL_TEST_DATA" not in os.environ and UNPACK.is_file():
            subprocess.run([sys.executable, UNPACK, folder, name], check=True, stdout=subprocess.DEVNULL)
        if not prepared.is_file():
            pytest.skip(f"no prepared {name}.safetensors: GFPL_TEST_DATA names no folder with it")
        return load(name, folder)

    return open_or_skip


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return load("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": torch.randint(0, 256, (6, 1, 4, 4), generator=generator, dtype=torch.uint8),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": torch.randint(0, 256, (3, 1, 4, 4), generator=generator, dtype=torch.uint8),
        "test_labels": torch.tensor([2, 1, 0]),
    }
