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
        if self.as_in_a_stack and (sites == 1 or inputs.shape[1] == 3):
            output: Tensor = _ConvolutionOfFew.apply(inputs, self.weight, self.bias, *options, sites)
            return output
        return F.conv2d(inputs, self.weight, self.bias, *options, self.groups * sites)


class _ConvolutionOfFew(torch.autograd.Function):
    """A grouped convolution whose weight gradient is computed with one group more than there are.

    oneDNN has another kernel for the weight gradient where there is one group, and on processors without AVX-512 also
    where there are three input channels in all, as in coloured images. It adds in another order. With this a site
    that trains alone, as on a device, or beside two others gets the same bits as in every other stack.
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
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.options = (stride, padding, dilation, False, (0, 0))  # type: ignore[attr-defined]
        ctx.bias, ctx.groups = bias is not None, groups  # type: ignore[attr-defined]
        if inputs.shape[1] == 1:
            # One channel has no layout of its own: torch would take it for channels first, and another kernel.
            height, width = inputs.shape[2:]
            inputs = inputs.contiguous().as_strided(inputs.shape, (height * width, 1, width, 1))
        return F.conv2d(inputs, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        back = torch.ops.aten.convolution_backward
        options, groups = ctx.options, ctx.groups  # type: ignore[attr-defined]
        for_inputs = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            for_inputs = back(gradient, inputs, weight, None, *options, groups, (True, False, False))[0]
        with_one_more = []
        for value, dim in ((gradient, 1), (inputs, 1), (weight, 0)):
            first = value.narrow(dim, 0, value.shape[dim] // groups)
            with_one_more.append(torch.cat([value, first], dim=dim).contiguous(memory_format=torch.channels_last))
        wanted = (False, True, ctx.bias)  # type: ignore[attr-defined]
        outputs = len(weight)
        _, for_weight, for_bias = back(*with_one_more, [len(with_one_more[2])], *options, groups + 1, wanted)
        for_bias = for_bias[:outputs] if ctx.bias else None  # type: ignore[attr-defined]
        return for_inputs, for_weight[:outputs], for_bias, None, None, None, None


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
