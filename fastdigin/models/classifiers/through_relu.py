"""Gradients where a ReLU lets none through."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ThroughRelu(TorchFunctionMode):
    """Within it, a ReLU that would let no gradient of an image through lets pass what raises it.

    Values are a ReLU's, and so is the gradient of an image wherever any of it passes. Source: the
    redirected ReLU of lucid (Olah et al., "Feature Visualization", Distill 2017).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _RELUS:
            return _Redirected.apply(args[0], _RELUS[func])
        return func(*args, **(kwargs or {}))


_RELUS = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), torch.inf
    ),
    F.relu6: 6.0,
}
"""Function -> where it stops rising."""


class _Redirected(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, most: float) -> Tensor:
        return x.clamp(0, most)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, ctx.most = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        ordinary = gradient * ((x > 0) & (x < ctx.most))
        on = ordinary.flatten(1).any(dim=1).view(-1, *[1] * (x.ndim - 1))
        # A descent along a negative gradient raises x.
        upwards = gradient * ((x <= 0) & (gradient < 0))
        return torch.where(on, ordinary, upwards), None
