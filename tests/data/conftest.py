import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gfpl_flwr.data.datasets import ImageDataset, load


@pytest.fixture
def real_data() -> Callable[[str], ImageDataset]:
    """Load a published data set from the folder GFPL_TEST_DATA names, or skip the test."""

    def open_or_skip(name: str) -> ImageDataset:
        folder = os.environ.get("GFPL_TEST_DATA", "")
        if not folder or not (Path(folder) / f"{name}.safetensors").is_file():
            pytest.skip(f"GFPL_TEST_DATA={folder!r} holds no prepared {name}.safetensors")
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
