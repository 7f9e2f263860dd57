"""How operations are registered with torch, so that compilers and transforms keep them whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("fastdigin", "FRAGMENT")
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def register(name: str, function: Callable, fake: Callable) -> Callable:
    """Makes ``function`` the operation torch.ops.fastdigin.NAME, and returns how to call it.

    Its annotations are the schema; it changes no argument. ``fake`` gives results of the same
    shapes, dtypes and strides. The operation has no gradient: an autograd.Function calls it.

    The function returned goes to torch's dispatcher where somebody there wants to know of the
    call (a compiler, a transform, a mode such as a counter of operations, a profiler, another kind
    of tensor), and else to ``function`` itself, which saves some 8 us a call.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdigin::{name}", fake, lib=_LIBRARY)
    operation = getattr(torch.ops.fastdigin, name).default

    def call(*args):
        dispatched = (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or torch.autograd.profiler._is_profiler_enabled
            or not _are_plain(args)
        )
        return (operation if dispatched else function)(*args)

    return call


def _are_plain(args: tuple) -> bool:
    """Whether all tensors among the arguments are ordinary ones, with numbers of their own."""
    for x in args:
        if type(x) is Tensor:
            if _is_wrapped(x):
                return False
        elif isinstance(x, Tensor) and type(x) is not torch.nn.Parameter:
            return False
    return True
