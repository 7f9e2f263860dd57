"""What makes the engine fast on a GPU, one mend at a time: each can be turned off.

A mend is turned off where the program takes its choice, so that the same loop goes the other way
and is counted like any other. What the formula gives no price for (launches, waits) shows in the
counts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch import Tensor

from fastdigin.engine import batch
from fastdigin.engine.planner import Planner
from fastdigin.models import classifier, passes
from fastdigin_kernels.common import choice

_KERNELS = {"layout": "group_norm_silu", "gates": "geglu", "attention": "attention"}
"""Mends that are kernels of ours, and their operations: without them PyTorch's own runs."""


@contextmanager
def without(names: Collection[str]) -> Iterator[None]:
    """Inside, the engine runs without these mends (fastdigin_bench.command names and tells them).

    "precision" and "graphs" are for the caller: the first is the models' dtype, and the second what
    the pretended hardware says of itself.
    """
    own = {_KERNELS[name] for name in names if name in _KERNELS}
    choose = choice._choose

    def chosen(operation: str, *arguments) -> str:
        return choice.own(operation) if operation in own else choose(operation, *arguments)

    with ExitStack() as stack:
        stack.enter_context(patch.object(choice, "_choose", chosen))
        if "batches" in names:
            stack.enter_context(patch.object(Planner, "_widths", lambda planner, count: [1]))
        if "passes" in names:
            stack.enter_context(patch.object(classifier, "once", _looked_at_for_one))
        if "waits" in names:
            stack.enter_context(patch.object(batch, "_settle", _one_by_one(batch._settle)))
        yield


def _looked_at_for_one(what, image: Tensor, make: Callable, *enough, **named) -> passes.Found:
    """A pass serves whoever asks for it first: losses, monitors and history each make their own."""
    found = passes.once(what, image, make, *enough, **named)
    if passes._shared is not None:
        passes._shared.pop(passes._key(what, image), None)
    return found


def _one_by_one(settle: Callable) -> Callable:
    def settle_each(slots) -> None:
        for slot in slots:
            settle([slot])

    return settle_each
