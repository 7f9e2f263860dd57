"""Operations of torch that are computed by exchangeable backends.

Being registered, they are whole to compilers and transforms. They have no gradient of their own:
an autograd.Function with ``setup_context`` calls them, because torch.library.register_autograd
fails under torch.func.vjp (torch 2.14). torch.library.triton_op would show compilers the Triton
kernels inside, which they do not fuse with anything; but tiles are chosen by timing them, which
nobody can while tracing, and the same operation has other backends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from fastdigin_kernels.common import shortcuts

_LIBRARY = torch.library.Library("fastdigin", "FRAGMENT")


class BackendError(RuntimeError):
    """An implementation that was asked for cannot run here, or not on these tensors."""


@cache
def backend(operation: str, impl: str) -> ModuleType:
    """The module fastdigin_kernels/OPERATION/IMPL.py. BackendError if it cannot be imported."""
    try:
        return import_module(f"fastdigin_kernels.{operation}.{impl}")
    except ImportError as error:
        raise BackendError(f"{operation} by {impl!r} cannot be used: {error}") from error


def register(operation: str) -> Callable[[Callable], Callable]:
    """Decorates a function OPERATION_NAME(*arguments, impl) that makes uninitialised results.

    Its annotations are the schema, and its results have the shapes, dtypes and strides of the true
    ones, which is all that compilers and fake tensors need. In its place stands the function that
    computes: it calls NAME(*arguments) of the backend that ``impl`` names. Where the first
    argument is empty, the results are zeros; backends see no empty tensors.

    torch.ops.fastdigin.OPERATION_NAME is the same. It is what the function calls where somebody
    may want to know of the call; else it saves the dispatcher's 8 us. Nothing is checked: that is
    for the caller, once (choice.py).
    """

    def decorate(uninitialised: Callable) -> Callable:
        name = uninitialised.__name__
        name_in_backend = name.removeprefix(f"{operation}_")

        def zeros(*args):
            results = uninitialised(*args)
            for result in (results,) if isinstance(results, Tensor) else results:
                result.zero_()
            return results

        def compute(*args):
            if not args[0].numel():
                return zeros(*args)
            return getattr(backend(operation, args[-1]), name_in_backend)(*args[:-1])

        schema = torch.library.infer_schema(uninitialised, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastdigin::{name}", uninitialised, lib=_LIBRARY)
        dispatched = getattr(torch.ops.fastdigin, name).default

        @wraps(uninitialised)  # also for its signature, by which compilers pass arguments
        def call(*args):
            if torch.compiler.is_compiling() or shortcuts.may_be_watched(args):
                return dispatched(*args)
            if not args[0].numel():
                return zeros(*args)
            *arguments, impl = args
            return getattr(backend(operation, impl), name_in_backend)(*arguments)

        return call

    return decorate
