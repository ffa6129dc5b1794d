"""Optimizers over the weights of a stack: each site has its own state and moves while it is active."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from gfpl_flwr.models import Stack

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class SGD:
    """Stochastic gradient descent with momentum, and with a pull to where the weights were at first.

    With a pull mu the loss has the term ``mu / 2 |w - w_0|^2`` of FedProx (arXiv 1812.06127, equation 2), whose
    gradient is added here: ``g + mu (w - w_0)``.

    Args:
        stack: its weights are changed in place.
        trained: names of the weights that move, and their values (S, ...).
        learning_rate, momentum, weight_decay: as in ``torch.optim.SGD``.
        pull: mu; 0 for none.
    """

    def __init__(
        self,
        stack: Stack,
        trained: Mapping[str, Tensor],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        pull: float = 0.0,
    ) -> None:
        self.stack = stack
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.pull = pull
        self.velocity = {name: torch.zeros_like(values) for name, values in trained.items()}
        self.start = {name: values.clone() for name, values in trained.items()} if pull else {}

    def select(self, sites: slice | Tensor) -> None:
        """Move these sites from now on; they are the active ones of the stack."""
        self.weights = [self.stack.active[name] for name in self.velocity]
        self._moving = {name: values[sites] for name, values in self.velocity.items()}
        self._momenta: list[Tensor | None] = [
            self.stack.shaped(name, values) for name, values in self._moving.items()
        ]
        self._origin = [self.stack.shaped(name, values[sites]) for name, values in self.start.items()]

    def step(self, gradients: Iterable[Tensor]) -> None:
        """Take a step of the active sites along the gradients of their weights."""
        steps = [gradient.contiguous() for gradient in gradients]
        if self.pull:
            steps = [
                torch.add(step, weight - origin, alpha=self.pull)
                for step, weight, origin in zip(steps, self.weights, self._origin, strict=True)
            ]
        # The functional form: making an optimizer object imports torch's compiler, which takes longer than torch
        # itself, and a device starts a process for every message.
        sgd(
            self.weights,
            steps,
            self._momenta,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def keep(self, sites: slice | Tensor) -> None:
        """Keep the state of the active sites, which were selected with the same argument."""
        for name, values in self._moving.items():
            self.velocity[name][sites] = values


class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) with torch's defaults, over heads; each site counts its own steps.

    Args:
        stack: its weights are changed in place.
        trained: names of weights of heads, which have the sites in front, and their values (S, ...).
        learning_rate: alpha.
    """

    def __init__(self, stack: Stack, trained: Mapping[str, Tensor], *, learning_rate: float) -> None:
        self.stack, self.learning_rate = stack, learning_rate
        self.means = {name: torch.zeros_like(values) for name, values in trained.items()}
        self.squares = {name: torch.zeros_like(values) for name, values in trained.items()}
        first = next(iter(trained.values()))
        self.taken = first.new_zeros(len(first))

    def select(self, sites: slice | Tensor) -> None:
        """Move these sites from now on; they are the active ones of the stack."""
        self.weights = [self.stack.active[name] for name in self.means]
        self._moving = [
            {name: values[sites] for name, values in moments.items()} for moments in (self.means, self.squares)
        ]
        self._taken = self.taken[sites]

    def step(self, gradients: Iterable[Tensor]) -> None:
        """Take a step of the active sites along the gradients of their weights."""
        self._taken += 1
        for_mean, for_square = (1 - beta ** self._taken.view(-1, 1, 1) for beta in _BETAS)
        means, squares = self._moving
        for (name, mean), weight, gradient in zip(means.items(), self.weights, gradients, strict=True):
            mean, square = self.stack.shaped(name, mean), self.stack.shaped(name, squares[name])
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            weight -= self.learning_rate * (mean / for_mean) / ((square / for_square).sqrt() + _EPSILON)

    def keep(self, sites: slice | Tensor) -> None:
        """Keep the state of the active sites, which were selected with the same argument."""
        self.taken[sites] = self._taken
        for moments, moving in zip((self.means, self.squares), self._moving, strict=True):
            for name, values in moving.items():
                moments[name][sites] = values
