"""Functions that a GPU replays in one launch (CUDA graphs).

A step of the U-Net is about a thousand kernels, which Python launches more slowly than a GPU runs
them. A graph records them once for one kind of call, with tensors that never move; from then on a
call copies its inputs there and launches once. What records and replays is the hardware's business
(hardware.py): on CPUs nothing is recorded, and a pretended GPU may run the function instead.

A function that needs a gradient has a second graph, of its backward. It is recorded with the first,
whose activations it reads, so between the two this pair cannot be replayed for others: whoever asks
meanwhile gets a pair of its own, as kept steps do, or is served without a graph.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdigin.engine.memory import is_out_of_memory
from fastdigin.hardware import Hardware

log = logging.getLogger(__name__)

Tensors = Sequence[Tensor | None]


class Graphs:
    """Calls functions, by their graphs where the hardware has any.

    A function may read nothing but its inputs and frozen weights, nor ask for a value, and it does
    the same whenever it is called with the same key and inputs of the same shapes.

    copies: how many pairs of graphs a function may have, each with its own activations. planned:
    the kind of batch that they were planned for, and its budget; None before there was any.
    """

    def __init__(self, hardware: Hardware, copies: int = 1):
        self._hardware, self.copies = hardware, copies
        self.planned: tuple[Hashable, int] | None = None
        self._recorded: dict[Hashable, list[_Recorded] | None] = {}
        self._pools: dict[Hashable, object] = {}

    def __call__(self, key: Hashable, function: Callable[..., Tensors], *inputs: Tensor | None):
        """``tuple(function(*inputs))``, differentiable where an input is."""
        kinds = tuple(None if x is None else (x.shape, x.dtype, _moves(x)) for x in inputs)
        with_gradient = any(kind is not None and kind[-1] for kind in kinds)
        key = key, kinds
        recorded = self._free(key, function, inputs, key if with_gradient else None)
        if recorded is None:
            return tuple(function(*inputs))
        if with_gradient:
            return _Replay.apply(recorded, *inputs)
        return recorded.forward(inputs)

    def begin(self) -> None:
        """No gradient that was not asked for so far will be asked for."""
        for recorded in itertools.chain(*filter(None, self._recorded.values())):
            recorded.pending = False

    def clear(self) -> None:
        """Gives the graphs and their memory up."""
        self._recorded.clear()
        self._pools.clear()  # torch opens no pool again whose graphs are gone
        self.planned = None

    def _free(self, key: Hashable, function, inputs: Tensors, pool: Hashable) -> _Recorded | None:
        """What was recorded and waits for no backward; recorded now where there may be one more.

        pool: whose memory it takes. Activations that wait for their backward lie in no other
        function's, which might be replayed meanwhile. Copies of one function share theirs: the
        last to go there is the first to come back.
        """
        known = self._recorded.setdefault(key, [] if self._hardware.has_graphs else None)
        if known is None:
            return None
        free = next((each for each in known if not each.pending), None)
        if free is None and len(known) < self.copies:
            if pool not in self._pools:
                self._pools[pool] = self._hardware.new_pool()
            try:
                free = _Recorded(self._hardware, function, inputs, self._pools[pool])
            except Exception as error:
                del self._pools[pool]  # perhaps nothing that is alive was recorded there
                if is_out_of_memory(error):
                    raise
                if is_out_of_memory(error.__context__):  # to end the recording failed then, too
                    raise error.__context__ from None
                log.warning("no graph of %s: %s", key[0], error)
                self._recorded[key] = None
                return None
            known.append(free)
        return free


class _Recorded:
    """The graph of a function and, where an input wants a gradient, that of its backward."""

    def __init__(
        self, hardware: Hardware, function: Callable[..., Tensors], inputs: Tensors, pool: object
    ):
        self.pending = False
        self._function = function
        self._inputs = [
            None if x is None else x.detach().clone().requires_grad_(_moves(x)) for x in inputs
        ]
        self._moving = [x for x in self._inputs if x is not None and x.requires_grad]
        self._outputs: tuple[Tensor | None, ...] = ()
        self._found: Tensors = ()
        self._forward = hardware.record(self._run, self._forget, pool)
        if self._moving:
            # Before anything is copied into the inputs, which autograd would take for a change; and
            # after a first replay, which fills the activations.
            self._forward()
            self._incoming = [None if x is None else torch.zeros_like(x) for x in self._outputs]
            self._backward = hardware.record(self._run_backward, self._forget_backward, pool)

    def forward(self, inputs: Tensors) -> tuple[Tensor | None, ...]:
        """The outputs, which nothing will change."""
        _copy(inputs, self._inputs)
        self._forward()
        return tuple(None if x is None else x.detach().clone() for x in self._outputs)

    def backward(self, incoming: Tensors) -> Iterator[Tensor]:
        """Gradients of the inputs that want one, of the latest forward."""
        _copy(incoming, self._incoming)
        self._backward()
        return iter([x.clone() for x in self._found])

    def wanted(self) -> list[bool]:
        return [x is not None and x.requires_grad for x in self._inputs]

    def _forget(self) -> None:
        self._outputs = ()

    def _forget_backward(self) -> None:
        self._found = ()

    def _run(self) -> None:
        self._forget()  # the activations before go first
        with torch.set_grad_enabled(bool(self._moving)):
            self._outputs = tuple(self._function(*self._inputs))

    def _run_backward(self) -> None:
        pairs = [
            (x, gradient)
            for x, gradient in zip(self._outputs, self._incoming, strict=True)
            if x is not None and x.requires_grad
        ]
        outputs, incoming = zip(*pairs, strict=True)
        self._found = torch.autograd.grad(
            outputs, self._moving, incoming, retain_graph=True, materialize_grads=True
        )


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recorded: _Recorded, *inputs):
        ctx.recorded, recorded.pending = recorded, True
        return recorded.forward(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *incoming):
        found = ctx.recorded.backward(incoming)
        ctx.recorded.pending = False
        return None, *(next(found) if wanted else None for wanted in ctx.recorded.wanted())


def recorded(graphs: Graphs, key: Hashable, function: Callable[..., Tensors]) -> Callable:
    """``function(model, *arguments)`` by its graph; arguments are trees of tensors, like Step."""

    def call(model, *arguments):
        tensors = list(_leaves(arguments))
        skeleton = _mapped(arguments, lambda _: _HOLE)

        def run(*given: Tensor) -> Tensors:
            left = iter(given)
            return function(model, *_mapped(skeleton, lambda _: next(left)))

        return graphs((key, _paths(arguments)), run, *tensors)

    return call


_HOLE = object()


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with its tensors, or the holes where they were, changed; in a fixed order."""
    if tree is _HOLE or isinstance(tree, Tensor):
        return change(tree)
    if is_dataclass(tree):
        parts = {f.name: _mapped(getattr(tree, f.name), change) for f in fields(tree)}
        return replace(tree, **parts)
    if isinstance(tree, Mapping):
        return {name: _mapped(value, change) for name, value in tree.items()}
    return tuple(_mapped(x, change) for x in tree) if isinstance(tree, tuple) else tree


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(tree, found.append)
    return found


def _paths(tree: Any) -> Hashable:
    """What a tree consists of beside its tensors."""
    if isinstance(tree, Tensor):
        return _HOLE
    if is_dataclass(tree):
        return type(tree), tuple(_paths(getattr(tree, f.name)) for f in fields(tree))
    if isinstance(tree, Mapping):
        return tuple((name, _paths(value)) for name, value in tree.items())
    return tuple(map(_paths, tree)) if isinstance(tree, tuple) else tree


def _moves(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


@torch.no_grad()
def _copy(source: Tensors, target: Tensors) -> None:
    for x, own in zip(source, target, strict=True):
        if own is not None:
            own.copy_(x, non_blocking=True)
