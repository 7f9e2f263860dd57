"""How operations are registered with torch, so that compilers and transforms keep them whole."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("fastdigin", "FRAGMENT")


def register(name: str, function: Callable, fake: Callable) -> None:
    """Makes ``function`` the operation torch.ops.fastdigin.NAME, which changes no argument.

    Its annotations are the schema; ``fake`` gives results of the same shapes, dtypes and strides.
    The operation has no gradient: an autograd.Function calls it.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdigin::{name}", fake, lib=_LIBRARY)
