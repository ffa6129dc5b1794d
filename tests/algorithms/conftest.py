"""Sites with random images for every algorithm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Algorithm
from gfpl_flwr.config import RunConfig
from gfpl_flwr.models import build_extractor, seeded_init
from gfpl_flwr.training import Images, Site

CLASSES = 5
SETTINGS: dict[str, Any] = {
    "rounds": 3,
    "gfpl.first-exchange": 1,
    "gfpl.exchange-every": 1,
    "gfpl.pseudo-per-class": 8,
    "fedpa.generator-steps": 3,
    "fedrep.head-epochs": 2,
}
MakeSite = Callable[..., tuple[Site, Algorithm, RunConfig]]


@pytest.fixture
def make_site() -> MakeSite:
    """Return a function that makes a site with random 8 x 8 images of the given training labels.

    It has no test images if ``tests`` is 0. All sites start from the same model.
    """

    def make(
        name: str, key: int, labels: list[int], *, tests: int = 6, **options: Any
    ) -> tuple[Site, Algorithm, RunConfig]:
        given = {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
        config, algorithm = parse_run(SETTINGS | {"algorithm": name} | given)
        algorithm = algorithm.resolve(config, CLASSES)
        generator = torch.Generator().manual_seed(key)

        def images(labels: torch.Tensor) -> Images:
            pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator).to(torch.uint8)
            return Images(pixels, labels, torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.5))

        extractor = seeded_init(lambda: build_extractor("cnn", (1, 8, 8)), 0)
        model = algorithm.build_model(extractor, 50, CLASSES, dropout=0.5, seed=1)
        train = images(torch.tensor(labels))
        return Site(key, model, train, images(train.labels[:tests]), config, batch_size=4), algorithm, config

    return make
