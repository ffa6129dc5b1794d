"""The one SGD loop, used for local training and for retraining."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd as sgd_step

from gfpl_flwr.algorithms.base import Counts, Site, Visit, evaluate
from gfpl_flwr.config import RunConfig
from gfpl_flwr.models import SplitModel, use_generator


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each step of one epoch: a permutation cut into batches.

    A last batch of a single row joins the batch before it, because BatchNorm cannot train on one sample.

    Args:
        num_samples: N.
        batch_size: B, rows a step.
        generator: source of the permutation, on the CPU.
    """
    rows = torch.randperm(num_samples, generator=generator)
    sizes = [batch_size] * (num_samples // batch_size)
    rest = num_samples % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    yield from torch.split(rows, sizes)


def sgd(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    *,
    num_samples: int,
    epochs: int,
    batch_size: int,
    config: RunConfig,
    shuffle: torch.Generator,
) -> float:
    """Minimise a loss by SGD with momentum, over epochs of shuffled batches.

    Momentum starts at zero, as in FedProto's protocol, where each round makes its own optimizer.

    Args:
        parameters: what is trained; gradients reach nothing else.
        loss_of: maps the rows of a batch (B,) to a scalar loss.
        num_samples: N; with none, nothing is done.
        epochs: passes over the rows.
        batch_size: B.
        config: learning rate, momentum and weight decay.
        shuffle: source of the permutations, on the CPU.

    Returns:
        The mean of the losses over all steps; NaN without a step.

    Raises:
        FloatingPointError: the loss is not finite; says at which step and what can be lowered.
    """
    weights: list[Tensor] = list(parameters)
    # The functional form of torch's SGD: making an optimizer object imports torch's compiler, which takes longer
    # than torch itself, and a device starts a process for every message.
    buffers: list[Tensor | None] = [None] * len(weights)
    steps, total = 0, torch.zeros(())
    for _ in range(epochs):
        for rows in batches(num_samples, batch_size, shuffle):
            loss = loss_of(rows)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                sgd_step(
                    weights,
                    list(gradients),
                    buffers,
                    lr=config.learning_rate,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )
            total = total + loss.detach()
            steps += 1
    mean = float(total) / steps if steps else math.nan
    if steps and not math.isfinite(mean):
        raise FloatingPointError(
            f"training diverged in {steps} steps, the loss is {mean}: lower learning-rate = {config.learning_rate}"
        )
    return mean


def train_round(site: Site, round: int, loss: Callable[[SplitModel, Tensor, Tensor], Tensor]) -> float:
    """Train a site's whole model for one local round.

    Args:
        site: its model is changed in place.
        round: number of the round, from 1; with the site and the seed it determines every random number.
        loss: maps (model, pixels (B, channels, H, W), labels (B,)) to a scalar.

    Returns:
        The mean loss over the round.
    """
    model, data = site.model, site.train
    model.train()
    if len(data) == 1:
        # BatchNorm has no variance to learn from one sample, so it uses its running statistics.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    use_generator(model, site.device_generator(round, "dropout"))
    augment = site.generator(round, "augment") if site.augment else None

    def loss_of(rows: Tensor) -> Tensor:
        return loss(model, data.pixels(rows, augment=augment), data.labels[rows])

    mean = sgd(
        model.parameters(),
        loss_of,
        num_samples=len(data),
        epochs=site.config.local_epochs,
        batch_size=site.batch_size,
        config=site.config,
        shuffle=site.generator(round, "shuffle"),
    )
    use_generator(model, None)
    model.eval()
    return mean


class Stopwatch:
    """Seconds spent by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time inside the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def train_and_evaluate(
    site: Site, visit: Visit, loss: Callable[[SplitModel, Tensor, Tensor], Tensor], watch: Stopwatch
) -> tuple[list[Counts], float]:
    """Do the local rounds of a visit, evaluating after each.

    Args:
        site: its model is changed in place.
        visit: says which rounds.
        loss: as in :func:`train_round`.
        watch: gets the phases ``train`` and ``evaluate``.

    Returns:
        The counts after every round, and the mean loss of the last one (NaN without rounds).
    """
    counts, mean = [], math.nan
    for round in visit.rounds:
        with watch("train"):
            mean = train_round(site, round, loss)
        with watch("evaluate"):
            counts.append(evaluate(site.model, site.test, round=round, phase="train"))
    return counts, mean


def cross_entropy(model: SplitModel, pixels: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy of the trainable classifier."""
    return F.cross_entropy(model.logits(model.extractor(pixels)), labels)
