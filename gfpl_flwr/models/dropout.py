"""Dropout whose masks come from an explicit generator.

torch's own dropout draws from the process's global generator, so a site's result would depend on which sites the
same worker process trained before.
"""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero elements, or whole channels, with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    Args:
        p: probability of zeroing.
        channels: zero whole channels of (B, C, H, W), as ``nn.Dropout2d`` does.
    """

    def __init__(self, p: float = 0.5, *, channels: bool = False) -> None:
        super().__init__()
        self.p = p
        self.channels = channels
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the masked inputs in training mode, the inputs themselves in evaluation mode."""
        if not self.training or self.p == 0:
            return inputs
        if self.generator is None:
            raise RuntimeError("Dropout in training mode needs a generator: call use_generator(model, generator)")
        shape = inputs.shape[:2] + (1,) * (inputs.dim() - 2) if self.channels else inputs.shape
        keep = torch.empty(shape, dtype=inputs.dtype, device=inputs.device)
        keep.bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)
        return inputs * keep


def use_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Give every :class:`Dropout` of a model the generator of the coming round."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
