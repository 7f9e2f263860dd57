"""What the operations on frozen parameters share."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor


class Function(torch.autograd.Function):
    """An autograd.Function with ``setup_context``, at half the overhead of a call.

    PyTorch works out the signature of ``forward`` anew at every call: of some 70 us that a frozen
    convolution adds to PyTorch's own, forward and backward, that is 30.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.forward.__signature__ = inspect.signature(cls.forward)


def seen_by_compilers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, such that torch.compile sees which of them need a gradient.

    It takes what torch.func.vjp differentiates for a constant as long as nothing was computed from
    it (torch 2.14), and an autograd.Function on it for its forward alone: where that calls an
    operation that has no gradient of its own, the result would be zero.
    """
    if not torch.compiler.is_compiling():
        return tensors
    return tuple(x.view_as(x) for x in tensors)


def require_frozen(operation: str, **parameters: Tensor | None) -> None:
    """Raises ValueError if a parameter requires a gradient that ``operation`` does not compute."""
    for name, parameter in parameters.items():
        if parameter is not None and parameter.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and {operation} gives one to x alone: call "
                f"{name}.requires_grad_(False), or use PyTorch's own operation"
            )
