"""Scales gradients on their way back; what is computed stays as it is."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Returns `x`, through which `scale` times the gradient flows back; none at all, and no graph, at 0."""
    if scale == 1:
        return x
    return x.detach() if scale == 0 else _ScaleGradient.apply(x, scale)  # type: ignore[no-untyped-call]


def apply_scaled(module: nn.Module, scale: float, x: Tensor) -> Tensor:
    """Returns `module(x)`; the gradient of the module's parameters is scaled, that of `x` is whole."""
    if scale == 1:
        return module(x)  # type: ignore[no-any-return]
    parameters = {name: scale_gradient(each, scale) for name, each in module.named_parameters()}
    return functional_call(module, parameters, x)  # type: ignore[no-any-return]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return upstream * ctx.scale, None
