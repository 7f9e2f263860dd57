"""What the autograd functions of the operations share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from fastdigin_kernels.common import shortcuts


def differentiable(
    function: type[torch.autograd.Function], first_output: bool = True
) -> Callable[[], Callable]:
    """A function that gives the way to call ``function`` now, as in ``way()(x, impl)``.

    function: with ``forward``, ``setup_context`` and a ``backward`` that does not count on being
    given gradients of the outputs that are left out. first_output: whether its other outputs, which
    are for the backward alone, are left out; else it has one.

    Transforms and compilers want a ``setup_context``, for which PyTorch binds the arguments of
    every call to a signature; and it makes zeros for the gradients of outputs that have none. That
    is 40 to 100 us, forward and backward, and the smallest kernels take no more (bench/NOTES.md).
    All other calls take a twin, made of the same three functions, that is spared both.
    """

    def results(output):
        return output[0] if first_output else output

    def compiled(*args):
        return results(function.apply(*_seen_by_compilers(args)))

    def transformed(*args):
        return results(function.apply(*args))

    def without_gradient(*args):
        return results(function.forward(*args))

    def forward_of_twin(ctx, *args):
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return results(output)

    twin = type(
        function.__name__,
        (torch.autograd.Function,),
        {"forward": staticmethod(forward_of_twin), "backward": staticmethod(function.backward)},
    )

    def way() -> Callable:
        if torch.compiler.is_compiling():
            return compiled
        if shortcuts.may_be_transformed():
            return transformed
        return twin.apply if torch.is_grad_enabled() else without_gradient

    return way


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
                f"{name} requires a gradient, and {operation} does not compute it: call "
                f"{name}.requires_grad_(False), or use PyTorch's own operation"
            )
