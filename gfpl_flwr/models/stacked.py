"""Many models of one shape as one network, each with its own weights.

The extractors run with the sites folded into the channels, (B, S C, H, W): a convolution becomes one grouped
convolution, BatchNorm sees S C channels, and pooling, ReLU and the code of the network itself stay as they are. The
heads run with the sites in front, (S, B, D), as batched matrix products. The arithmetic of a site does not depend on
the others: on a processor the results are the same to the bit whatever the number of sites, one included.
"""

import copy
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn

from gfpl_flwr.models.dropout import active_dropout
from gfpl_flwr.models.split import SplitModel
from gfpl_flwr.models.stacked_layers import (
    STACKED,
    CannotStackError,
    SingleLayer,
    StackedBatchNorm2d,
    StackedConv2d,
    StackedLayer,
    stack_layers,
)

M = TypeVar("M", bound=nn.Module)
_EXTRACTOR = "extractor."
_LARGE = 1_000_000


def is_large(model: nn.Module) -> bool:
    """Return whether arithmetic, and not the number of operations, sets the time of a step: above 1e6 weights."""
    return sum(parameter.numel() for parameter in model.parameters()) > _LARGE


def _layout(model: nn.Module) -> torch.memory_format:
    """Return the layout in which a model's images should come.

    On a processor convolutions and pooling with few channels take half the time and less with the channels last; a
    large network gains nothing. A GPU gets torch's own layout: neither was measured on one.
    """
    small_on_processor = next(model.parameters()).device.type == "cpu" and not is_large(model)
    return torch.channels_last if small_on_processor else torch.contiguous_format


class Stack:
    """S models of one shape as one network.

    Args:
        models: are copied; :meth:`write_back` copies the weights the other way.
        exact: have a site alone compute to the bit what it computes beside others, where that is possible: on a
            processor, with small models. It costs a site alone some of its speed.

    Attributes:
        network: the heads of the active sites, called with features (S, B, D); and their extractor, folded.
        weights: name of each parameter, as in the models, to its values (S, ...) over all sites.
        head_weights: those behind the features.
        exact: whether that is so.
        layout: memory format in which :meth:`features` wants its images.
        dropout: the layers that drop something in training.
        active: name of each parameter to its values over the active sites.
        single: whether it can only run as the one model that it is, because of a layer that does not stack.

    Raises:
        CannotStackError: a layer that has weights or buffers and is no Conv2d, Linear or BatchNorm2d, or models
            that differ.
    """

    def __init__(self, models: Sequence[SplitModel], *, exact: bool = True) -> None:
        self.models = list(models)
        self._layers: dict[str, StackedLayer] = {}
        self.network = _stacked(self.models, "", self._layers)
        self.weights = {
            f"{path}.{name}": layer.whole[name]
            for path, layer in self._layers.items()
            for name in layer.parameter_names
        }
        self.head_weights = {name: values for name, values in self.weights.items() if not name.startswith(_EXTRACTOR)}
        self.layout = _layout(models[0])
        self.exact = exact and not is_large(models[0]) and next(models[0].parameters()).device.type == "cpu"
        for layer in self._layers.values():
            if isinstance(layer, StackedConv2d):
                layer.as_in_a_stack = self.exact and layer.groups == 1
        self.single = any(isinstance(layer, SingleLayer) for layer in self._layers.values())
        self.dropout = active_dropout(self.network)
        self._folded_dropout = set(active_dropout(self.network.extractor))
        self.select(slice(None))

    def select(self, sites: slice | Tensor) -> None:
        """Make some sites the active ones. A slice shares memory; the work on others is kept by :meth:`keep`."""
        for layer in self._layers.values():
            layer.select(sites)
        self.active = {
            f"{path}.{name}": layer.value(name)
            for path, layer in self._layers.items()
            for name in layer.parameter_names
        }

    def shaped(self, name: str, values: Tensor) -> Tensor:
        """View values (S, ...) of a parameter in the shape that it has in ``active``."""
        return values.view(self.active[name].shape)

    def keep(self, sites: slice | Tensor) -> None:
        """Keep what was done on the active sites, which were selected with the same argument."""
        if isinstance(sites, Tensor):
            for layer in self._layers.values():
                layer.keep(sites)

    def use_running_statistics(self) -> None:
        """Have BatchNorm normalise by its running statistics and leave them alone, in training too."""
        for layer in self._layers.values():
            if isinstance(layer, StackedBatchNorm2d):
                layer.eval()

    def features(self, folded: Tensor) -> Tensor:
        """Map the images of the active sites, folded into channels (B, S channels, H, W), to features (S, B, D)."""
        features: Tensor = self.network.extractor(folded)
        return features.view(len(folded), -1, self.network.feature_dim).transpose(0, 1)

    def arrange(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Bring the masks (..., S, B, width) of each layer of ``dropout`` into the shape that it multiplies with."""
        return [
            mask.transpose(-3, -2).flatten(-2) if layer in self._folded_dropout else mask
            for layer, mask in zip(self.dropout, masks, strict=False)
        ]

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Hand each layer of ``dropout`` the arranged masks of its batch."""
        for layer, mask in zip(self.dropout, masks, strict=False):
            layer.mask = mask

    def write_back(self, sites: Iterable[int]) -> None:
        """Copy weights and buffers of some sites into their models, and put these into evaluation mode."""
        with torch.no_grad():
            for site in sites:
                self.models[site].eval()
                for path, layer in self._layers.items():
                    original = self.models[site].get_submodule(path)
                    for name, values in layer.whole.items():
                        attrgetter(name)(original).copy_(layer.original(name, values[site]))


def _stacked(models: Sequence[M], path: str, layers: "dict[str, StackedLayer]") -> M:
    """Return the first of some equal modules with its layers replaced; what has no weights is shared or copied."""
    first = models[0]
    if any(type(model) is not type(first) for model in models):
        raise CannotStackError(f"{path} is a {type(first).__name__} in one model and something else in another")
    for name, value in _own_values(first).items():
        if isinstance(value, nn.Parameter) or not all(torch.equal(getattr(model, name), value) for model in models):
            raise CannotStackError(f"{path}.{name} of a {type(first).__name__} is no weight of a layer that stacks")
    twin = copy.copy(first)  # a deep copy would take longer than a step of training
    twin._modules = {}
    for name, child in first.named_children():
        at = f"{path}.{name}" if path else name
        siblings = [model.get_submodule(name) for model in models]
        if type(child) in STACKED or (len(models) == 1 and _own_values(child)):
            layers[at] = layer = stack_layers(siblings, folded=at.startswith(_EXTRACTOR))
            setattr(twin, name, layer)
        else:
            setattr(twin, name, _stacked(siblings, at, layers))
    return twin


def _own_values(module: nn.Module) -> dict[str, Tensor]:
    return dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
