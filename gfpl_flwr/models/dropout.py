"""Dropout whose masks are drawn beforehand, from an explicit generator.

torch's own dropout draws from the process's global generator, so a site's result would depend on which sites the
same process trained before. Here the masks of a whole epoch are drawn at once and the training loop hands each
step its rows, which also lets many sites train as one network with each site's own masks.
"""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero features, or whole channels of (B, C, H, W), with probability ``p`` and scale the rest by ``1 / (1 - p)``.

    Args:
        width: features (B, width) or channels that it sees.
        p: probability of zeroing.
    """

    mask: Tensor | None

    def __init__(self, width: int, p: float = 0.5) -> None:
        super().__init__()
        self.width = width
        self.p = p
        self.mask = None

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return the factors 0 and ``1 / (1 - p)`` of some samples, (rows, width), on the generator's device."""
        keep = torch.empty(rows, self.width, device=generator.device)
        return keep.bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the masked inputs in training mode, the inputs themselves in evaluation mode."""
        if not self.training or self.p == 0:
            return inputs
        if self.mask is None:
            raise RuntimeError("Dropout in training mode needs the masks of its batch: set its mask to draw(...)")
        return inputs * (self.mask[..., None, None] if inputs.dim() == 4 else self.mask)


def active_dropout(model: nn.Module) -> list[Dropout]:
    """Return the layers of a model that drop something in training."""
    return [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]
