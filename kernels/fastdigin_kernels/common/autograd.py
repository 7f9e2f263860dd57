"""What the operations on frozen parameters share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def differentiable(function: type[torch.autograd.Function], kept: int = 0) -> Callable:
    """``function.apply`` without the last ``kept`` outputs, which are for the backward alone.

    function: with ``forward``, ``setup_context`` and a ``backward`` that does not count on being
    given gradients of the outputs that are left out.

    Transforms and compilers want a ``setup_context``, for which PyTorch binds the arguments of
    every call to a signature; and it makes zeros for the gradients of outputs that have none. That
    is 40 to 100 us, forward and backward, and the smallest kernels take no more (bench/NOTES.md).
    All other calls take a twin, made of the same three functions, that is spared both.
    """

    def results(output):
        if kept == 0:
            return output
        output = output[:-kept]
        return output[0] if len(output) == 1 else output

    def twin_forward(ctx, *args):
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return results(output)

    functions = {"forward": staticmethod(twin_forward), "backward": staticmethod(function.backward)}
    twin = type(function.__name__, (torch.autograd.Function,), functions)

    def call(*args):
        if torch.compiler.is_compiling():
            return results(function.apply(*_seen_by_compilers(args)))
        if torch._C._are_functorch_transforms_active():
            return results(function.apply(*args))
        if not torch.is_grad_enabled():
            return results(function.forward(*args))
        return twin.apply(*args)

    return call


def once_differentiable(backward: Callable) -> Callable:
    """PyTorch's decorator of that name, at no cost where no second derivative is recorded."""
    recorded = torch.autograd.function.once_differentiable(backward)

    @wraps(backward)
    def once(ctx, *grads):
        return (recorded if torch.is_grad_enabled() else backward)(ctx, *grads)

    return once


def _seen_by_compilers(args: tuple) -> tuple:
    """The same arguments, such that torch.compile sees which of them need a gradient.

    It takes what torch.func.vjp differentiates for a constant as long as nothing was computed from
    it (torch 2.14), and an autograd.Function on it for its forward alone: where that calls an
    operation that has no gradient of its own, the result would be zero.
    """
    return tuple(x.view_as(x) if isinstance(x, Tensor) else x for x in args)


def require_frozen(operation: str, **parameters: Tensor | None) -> None:
    """Raises ValueError if a parameter requires a gradient that ``operation`` does not compute."""
    for name, parameter in parameters.items():
        if parameter is not None and parameter.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and {operation} gives one to x alone: call "
                f"{name}.requires_grad_(False), or use PyTorch's own operation"
            )
