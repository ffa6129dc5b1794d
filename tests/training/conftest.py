"""Sites with random images, and a plain loop to compare with."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.models import Dropout, SplitModel, build_extractor, seeded_init
from gfpl_flwr.training import Images, Loss, Site

CLASSES = 5
SHAPES = {"cnn": (1, 12, 12), "resnet18": (3, 32, 32)}
DIMS = {"cnn": 50, "resnet18": 512}


@pytest.fixture
def site_of() -> Callable[..., Site]:
    """Make a site: its images, the start of its model and its random numbers follow from its key."""

    def make(key: int, samples: int, architecture: str = "cnn", *, batch_size: int = 4, **options: object) -> Site:
        flat = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
        config, algorithm = parse_run({"learning-rate": 0.05, "weight-decay": 0.001} | flat)
        algorithm = algorithm.resolve(config, CLASSES)
        generator = torch.Generator().manual_seed(key)
        shape = SHAPES[architecture]
        pixels = torch.randint(0, 256, (samples, *shape), generator=generator).to(torch.uint8)
        labels = torch.randint(0, CLASSES, (samples,), generator=generator)
        half = torch.full((shape[0], 1, 1), 0.5)
        extractor = seeded_init(lambda: build_extractor(architecture, shape), key)
        dropout = 0.5 if architecture == "cnn" else 0.0
        model = algorithm.build_model(extractor, DIMS[architecture], CLASSES, dropout=dropout, seed=1)
        images = Images(pixels, labels, half, half)
        return Site(key, model, images, images, config, batch_size)

    return make


@pytest.fixture
def plain_round() -> Callable[[Site, Loss, int], tuple[SplitModel, float]]:
    """Return the site's model after a round of torch's own optimizer on torch's own layers, batch by batch."""

    def train(site: Site, loss: Loss, round: int) -> tuple[SplitModel, float]:
        model, config = copy.deepcopy(site.model).train(), site.config
        optimizer = torch.optim.SGD(
            model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
        )
        layers = [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]
        count, size, losses = len(site.train), site.batch_size, []
        shuffle, dropout = site.generator(round, "shuffle"), site.generator(round, "dropout")
        for _ in range(config.local_epochs):
            order = torch.randperm(count, generator=shuffle)
            masks = [layer.draw(count, dropout) for layer in layers]
            start = 0
            while start < count:
                stop = count if count - start in (size, size + 1) else min(start + size, count)
                for layer, mask in zip(layers, masks, strict=True):
                    layer.mask = mask[start:stop]
                rows = order[start:stop]
                value: Tensor = loss(model, model.extractor(site.train.pixels(rows)), site.train.labels[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                losses.append(value.item())
                start = stop
        return model.eval(), sum(losses) / len(losses)

    return train
