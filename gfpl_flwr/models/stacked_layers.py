"""Layers of many models of one shape as one layer, each model with its own weights."""

import copy
from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CannotStackError(ValueError):
    """These models cannot run as one network; says why."""


class StackedLayer(nn.Module):
    """S layers of one shape; ``whole`` holds their weights and buffers (S, ...), attributes those of active sites."""

    def __init__(self, layers: Sequence[nn.Module], folded: bool) -> None:
        super().__init__()
        self.folded = folded
        self.parameter_names = [name for name, _ in layers[0].named_parameters()]
        self.buffer_names = [name for name, _ in layers[0].named_buffers()]
        with torch.no_grad():
            self.whole = {
                name: torch.stack([self.original(name, attrgetter(name)(layer)) for layer in layers])
                for name in (*self.parameter_names, *self.buffer_names)
            }

    def original(self, name: str, value: Tensor) -> Tensor:
        """Turn a weight as it is stored here into the layer's own, or the other way."""
        return value

    def active_shape(self, name: str, values: Tensor) -> Tensor:
        """View the values of the active sites (S, ...) as the layer works with them."""
        return values

    def select(self, sites: slice | Tensor) -> None:
        """Make some sites the active ones."""
        self._selected = {name: values[sites] for name, values in self.whole.items()}
        for name, values in self._selected.items():
            # Leaves already have their working shape: views made in each step would cost a device a tenth of it.
            setattr(self, name, self.active_shape(name, values).requires_grad_(name in self.parameter_names))

    def value(self, name: str) -> Tensor:
        """Return a parameter of the active sites."""
        value: Tensor = getattr(self, name)
        return value

    def keep(self, sites: Tensor) -> None:
        """Keep what was done on the active sites, which were selected by these indices."""
        for name, values in self.whole.items():
            values[sites] = self._selected[name]


class StackedConv2d(StackedLayer):
    """One convolution with a group, or with as many as each had, for every model."""

    weight: Tensor  # (S out, in / groups, height, width)
    bias: Tensor | None  # (S out)

    def __init__(self, layers: Sequence[nn.Conv2d], folded: bool) -> None:
        super().__init__(layers, folded)
        first = layers[0]
        if isinstance(first.padding, str) or first.padding_mode != "zeros":
            raise CannotStackError("a convolution with padding by name or mode does not stack")
        self.stride, self.padding, self.dilation = first.stride, first.padding, first.dilation
        self.groups, self.out_channels = first.groups, first.out_channels
        self.as_in_a_stack = False
        if "bias" not in self.parameter_names:
            self.bias = None

    def active_shape(self, name: str, values: Tensor) -> Tensor:
        """Fold the models into the output channels."""
        return values.flatten(0, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the inputs of the active models."""
        sites = len(self.weight) // self.out_channels
        options = (self.stride, self.padding, self.dilation)
        if sites == 1 and self.as_in_a_stack:
            output: Tensor = _ConvolutionOfOne.apply(inputs, self.weight, self.bias, *options)
            return output
        return F.conv2d(inputs, self.weight, self.bias, *options, self.groups * sites)


class _ConvolutionOfOne(torch.autograd.Function):
    """A convolution whose weight gradient is computed as in a stack of two.

    oneDNN has another kernel for the weight gradient of an ungrouped convolution, which adds in another order. With
    this a site that trains alone, as on a device, gets the same bits as in a stack.
    """

    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx",
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.options = (stride, padding, dilation, False, (0, 0))  # type: ignore[attr-defined]
        ctx.bias = bias is not None  # type: ignore[attr-defined]
        # Images of one channel have no layout of their own: torch would go on with the channels first.
        outputs = F.conv2d(inputs, weight, bias, stride, padding, dilation)
        return outputs.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        back = torch.ops.aten.convolution_backward
        options = ctx.options  # type: ignore[attr-defined]
        for_inputs = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            for_inputs = back(gradient, inputs, weight, None, *options, 1, (True, False, False))[0]
        twice = [
            torch.cat([value, value], dim=dim).contiguous(memory_format=torch.channels_last)
            for value, dim in ((gradient, 1), (inputs, 1), (weight, 0))
        ]
        wanted = (False, True, ctx.bias)  # type: ignore[attr-defined]
        outputs = len(weight)
        _, for_weight, for_bias = back(*twice, [2 * outputs], *options, 2, wanted)
        return for_inputs, for_weight[:outputs], for_bias[:outputs] if ctx.bias else None, None, None, None  # type: ignore[attr-defined]


class StackedLinear(StackedLayer):
    """One batched matrix product, on (S, B, in), or folded on (B, S in)."""

    weight: Tensor  # (S, in, out)
    bias: Tensor | None  # (S, 1, out)

    def __init__(self, layers: Sequence[nn.Linear], folded: bool) -> None:
        super().__init__(layers, folded)
        if "bias" not in self.parameter_names:
            self.bias = None

    def original(self, name: str, value: Tensor) -> Tensor:
        """Transpose the weight, as the product wants it."""
        return value.T if name == "weight" else value

    def active_shape(self, name: str, values: Tensor) -> Tensor:
        """Let the bias be added to every row of a batch."""
        return values.unsqueeze(1) if name == "bias" else values

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the inputs of the active models."""
        if self.folded:
            inputs = inputs.view(len(inputs), len(self.weight), -1).transpose(0, 1)
        out = inputs @ self.weight if self.bias is None else torch.baddbmm(self.bias, inputs, self.weight)
        return out.transpose(0, 1).flatten(1) if self.folded else out


class StackedBatchNorm2d(StackedLayer):
    """One normalisation over the channels of all models."""

    weight: Tensor  # (S C), as all but the last
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor  # (S,)

    def __init__(self, layers: Sequence[nn.BatchNorm2d], folded: bool) -> None:
        super().__init__(layers, folded)
        first = layers[0]
        momentum: float | None = first.momentum
        if not (first.affine and first.track_running_stats) or momentum is None:
            raise CannotStackError("a BatchNorm without weights, statistics or momentum does not stack")
        self.momentum, self.eps = momentum, first.eps

    def active_shape(self, name: str, values: Tensor) -> Tensor:
        """Fold the models into the channels."""
        return values.flatten()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the inputs of the active models."""
        if self.training:
            self.num_batches_tracked += 1
        statistics = self.running_mean, self.running_var
        return F.batch_norm(inputs, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


class SingleLayer(StackedLayer):
    """The layer of one model, whatever it is: what does not stack can still be trained alone."""

    def __init__(self, layers: Sequence[nn.Module], folded: bool) -> None:
        (layer,) = layers
        super().__init__(layers, folded)
        self.layer = copy.deepcopy(layer)
        self.whole = {
            name: value.detach()[None]
            for name, value in (*self.layer.named_parameters(), *self.layer.named_buffers())
        }

    def select(self, sites: slice | Tensor) -> None:
        """Nothing: there is one model, and its values are the layer's own."""

    def value(self, name: str) -> Tensor:
        """Return the layer's own parameter."""
        return self.layer.get_parameter(name)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the inputs of the model."""
        outputs: Tensor = self.layer(inputs)
        return outputs


def stack_layers(layers: Sequence[nn.Module], *, folded: bool) -> StackedLayer:
    """Return layers of one kind as one.

    Raises:
        CannotStackError: there are several, and none of that kind is known.
    """
    kind = STACKED.get(type(layers[0]), SingleLayer)
    try:
        return kind(layers, folded)
    except CannotStackError:
        if len(layers) > 1:
            raise
        return SingleLayer(layers, folded)


STACKED: dict[type[nn.Module], Callable[..., StackedLayer]] = {
    nn.Conv2d: StackedConv2d,
    nn.Linear: StackedLinear,
    nn.BatchNorm2d: StackedBatchNorm2d,
}
