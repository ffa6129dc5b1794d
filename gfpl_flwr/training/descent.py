"""The one SGD loop, for local training and for retraining, for one site and for many at once."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gfpl_flwr.models import Stack
from gfpl_flwr.training.cohort import Cohort, Draws, Samples, whole_batches
from gfpl_flwr.training.optimizers import SGD, Adam
from gfpl_flwr.training.site import Images, Site
from gfpl_flwr.training.work import Work, network_kind

Loss = Callable[..., Tensor]
"""Maps a model, features (..., B, D) and labels (..., B) to the mean loss of each batch (...).

What a descent gives beside comes as keyword arguments: each of its constants with leading dimensions (...), and as
``beside`` the features (..., B, D) and labels (..., B) that go with the step.
"""


@dataclass(frozen=True)
class Calibration:
    """A step of the heads alone after every step of a descent, by Adam.

    Attributes:
        loss: maps a model, and the descent's constants as keyword arguments, to a loss for each site (...).
        learning_rate: of Adam, which starts anew with every descent.
    """

    loss: Callable[..., Tensor]
    learning_rate: float


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
        constants: tensors that the loss gets as keyword arguments.
        beside: as many labelled features as there is data; each step has as many of them as samples, in their order.
        pull: mu of FedProx, see :class:`SGD`; it is no part of the mean loss.
        calibration: a step of the heads after every step.
        trained: names of the weights that move; None for the whole model, or for its heads on features.
        turn: tells the random numbers of this descent from those of another in the same round.
    """

    site: Site
    phase: str
    data: Images | Samples
    loss: Loss
    round: int
    epochs: int
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Samples | None = None
    pull: float = 0.0
    calibration: Calibration | None = None
    trained: tuple[str, ...] | None = None
    turn: str = ""

    def kind(self) -> Hashable:
        """Return the shape of the model and everything that steps of one loop share."""
        shapes = tuple((name, value.shape) for name, value in self.constants.items())
        return (
            network_kind(self.site),
            (type(self.data), min(len(self.data), 2), self.loss, self.epochs, self.phase),
            (shapes, self.beside is None, self.pull, self.calibration, self.trained, self.turn),
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
    first, config = works[0], works[0].site.config
    on_images = isinstance(first.data, Images)
    # Where a site's data is its own there is no other engine to agree with, and a device is spared the effort.
    stack = Stack([work.site.model for work in works], exact=config.partition != "own")
    stack.network.train(on_images)
    if len(first.data) == 1:
        stack.use_running_statistics()  # BatchNorm has no variance to learn from one sample
    beside = [work.beside for work in works if work.beside is not None]
    cohort = Cohort([work.data for work in works], stack, [_draws(work) for work in works], beside)
    constants = {name: torch.stack([work.constants[name] for work in works]) for name in first.constants}
    trained = stack.weights if on_images else stack.head_weights
    if first.trained is not None:
        trained = {name: trained[name] for name in first.trained}
    sgd = SGD(
        stack,
        trained,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        pull=first.pull,
    )
    calibration = first.calibration
    adam = Adam(stack, stack.head_weights, learning_rate=calibration.learning_rate) if calibration else None
    totals, taken = (torch.zeros(len(works), device=cohort.device) for _ in range(2))
    for _ in range(first.epochs):
        for run in cohort.epoch(size):
            stack.select(run.sites)
            moving = [optimizer for optimizer in (sgd, adam) if optimizer is not None]
            for optimizer in moving:
                optimizer.select(run.sites)
            its = {name: values[run.sites] for name, values in constants.items()}
            total = totals[run.sites]
            for step in run.steps:
                stack.set_masks(step.masks)
                features = stack.features(step.inputs) if on_images else step.inputs
                more = its | {"beside": step.beside} if beside else its
                losses = first.loss(stack.network, features, step.labels, **more)
                gradients = _gradients(losses, sgd.weights)
                with torch.no_grad():
                    sgd.step(gradients)
                    total += losses
                if calibration is not None and adam is not None:
                    gradients = _gradients(calibration.loss(stack.network, **its), adam.weights)
                    with torch.no_grad():
                        adam.step(gradients)
            totals[run.sites] = total
            taken[run.sites] += run.count
            stack.keep(run.sites)
            for optimizer in moving:
                optimizer.keep(run.sites)
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


def _gradients(losses: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses, weights, torch.ones_like(losses), allow_unused=True, materialize_grads=True)


def _draws(work: Descent) -> Draws:
    site, round, turn = work.site, work.round, work.turn
    if not isinstance(work.data, Images):
        return Draws(site.generator(round, turn + work.phase))
    augment = site.generator(round, turn + "augment") if site.augment else None
    return Draws(site.generator(round, turn + "shuffle"), site.device_generator(round, turn + "dropout"), augment)
