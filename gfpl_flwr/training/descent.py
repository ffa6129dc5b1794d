"""The one SGD loop, for local training and for retraining, for one site and for many at once."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.sgd import sgd as sgd_step

from gfpl_flwr.models import SplitModel, Stack, is_large
from gfpl_flwr.training.cohort import Cohort, Draws, Samples, whole_batches
from gfpl_flwr.training.site import Images, Site
from gfpl_flwr.training.work import Work

Loss = Callable[[SplitModel, Tensor, Tensor], Tensor]
"""Maps a model, features (..., B, D) and labels (..., B) to the mean loss of each batch (...)."""


@dataclass(frozen=True)
class Descent(Work):
    """Minimise a loss by SGD with momentum, over epochs of shuffled batches; the result is the mean loss.

    On images the whole model is trained, in training mode; on features its heads are, with dropout off. Momentum
    starts at zero, as in FedProto's protocol, where each round makes its own optimizer. A loss that is not finite
    gives a ``FloatingPointError`` that says what to lower; the model is then as it was.

    Attributes:
        site: its model is changed in place.
        phase: ``"train"`` or ``"retrain"``.
        data: images or features of this site; with none nothing is done and the result is NaN.
        loss: is called with the features of the data.
        round: with the site and the seed it determines every random number.
        epochs: passes over the data.
    """

    site: Site
    phase: str
    data: Images | Samples
    loss: Loss
    round: int
    epochs: int

    def kind(self) -> Hashable:
        """Return the shape of the model and everything that steps of one loop share."""
        model = self.site.model
        shapes = tuple((name, value.shape) for name, value in model.state_dict().items())
        device = next(model.parameters()).device
        # A processor gains nothing from a stack of large models: its core is busy with one.
        alone = self.site.key if device.type == "cpu" and is_large(model) else None
        return (
            (type(model), repr(model), shapes, device, alone),
            (type(self.data), min(len(self.data), 2), self.loss, self.epochs, self.phase),
            (self.site.config, self.site.batch_size, self.site.augment),
        )

    @classmethod
    def do(cls, works: "Sequence[Descent]") -> list[float | Exception]:
        """Train the models of these sites as one network."""
        return _descend(works)


def _descend(works: Sequence[Descent]) -> list[float | Exception]:
    if not len(works[0].data):
        return [math.nan] * len(works)
    # Sites with more whole batches come first, so that those that still have one are always the first ones.
    size = works[0].site.batch_size
    order = sorted(range(len(works)), key=lambda index: -whole_batches(len(works[index].data), size))
    works = [works[index] for index in order]
    loss, config = works[0].loss, works[0].site.config
    on_images = isinstance(works[0].data, Images)
    # Where a site's data is its own there is no other engine to agree with, and a device is spared the effort.
    stack = Stack([work.site.model for work in works], exact=config.partition != "own")
    stack.network.train(on_images)
    if len(works[0].data) == 1:
        stack.use_running_statistics()  # BatchNorm has no variance to learn from one sample
    cohort = Cohort([work.data for work in works], stack, [_draws(work) for work in works])
    trained = stack.weights if on_images else stack.head_weights
    velocity = {name: torch.zeros_like(values) for name, values in trained.items()}
    totals, taken = (torch.zeros(len(works), device=cohort.device) for _ in range(2))
    for _ in range(works[0].epochs):
        for run in cohort.epoch(size):
            stack.select(run.sites)
            weights = [stack.active[name] for name in trained]
            moving = {name: values[run.sites] for name, values in velocity.items()}
            momenta: list[Tensor | None] = [stack.shaped(name, values) for name, values in moving.items()]
            total = totals[run.sites]
            for inputs, labels, masks in run.steps:
                stack.set_masks(masks)
                losses = loss(stack.network, stack.features(inputs) if on_images else inputs, labels)
                gradients = torch.autograd.grad(losses.sum(), weights, allow_unused=True, materialize_grads=True)
                with torch.no_grad():
                    # The functional form of torch's SGD: making an optimizer object imports torch's compiler, which
                    # takes longer than torch itself, and a device starts a process for every message.
                    sgd_step(
                        weights,
                        [gradient.contiguous() for gradient in gradients],
                        momenta,
                        lr=config.learning_rate,
                        momentum=config.momentum,
                        weight_decay=config.weight_decay,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                    )
                    total += losses
            totals[run.sites] = total
            taken[run.sites] += run.count
            stack.keep(run.sites)
            for name, values in moving.items():
                velocity[name][run.sites] = values
    means = (totals / taken).tolist()
    stack.write_back([index for index, mean in enumerate(means) if math.isfinite(mean)])
    results: list[float | Exception] = [math.nan] * len(works)
    for index, mean, steps in zip(order, means, taken.tolist(), strict=True):
        diverged = FloatingPointError(
            f"training diverged in {steps:.0f} steps, the loss is {mean}: "
            f"lower learning-rate = {config.learning_rate}"
        )
        results[index] = mean if math.isfinite(mean) else diverged
    return results


def _draws(work: Descent) -> Draws:
    site, round = work.site, work.round
    if not isinstance(work.data, Images):
        return Draws(site.generator(round, work.phase))
    augment = site.generator(round, "augment") if site.augment else None
    return Draws(site.generator(round, "shuffle"), site.device_generator(round, "dropout"), augment)
