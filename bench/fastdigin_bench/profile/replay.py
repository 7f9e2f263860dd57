"""Networks whose passes are counted once and then only noted: a whole run takes thousands.

A pass of the same network on inputs of the same shapes costs the same, so its first one is counted
on fake tensors, forward and backward, and the next ones give results of the right shapes, hold as
many bytes for the backward, and add what the first one cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin_bench.profile.ledger import Counts, Ledger


@dataclass(frozen=True)
class _Tape:
    """What a pass costs.

    results: shape, strides, dtype and device of each. backward: of gradients that are contiguous
    (True), or in the layout of the result. held: bytes that wait for the backward; above: what is
    taken beside them at most.
    """

    results: tuple[tuple, ...]
    as_tuple: bool
    forward: Counts
    backward: Mapping[bool, Counts]
    held: int
    above_forward: int
    above_backward: int


def replay(network: nn.Module, name: str, ledger: Ledger) -> None:
    """Makes the network, in place, count each kind of pass once. name: of its part of a stage."""
    original, tapes = network.forward, {}

    def forward(*args, **kwargs):
        with ledger.part(name):
            if _stores(kwargs):
                return original(*args, **kwargs)
            tensors = _tensors_of((args, kwargs))
            key = torch.is_grad_enabled(), _described((args, kwargs))
            if key not in tapes:
                tapes[key] = _recorded(original, args, kwargs, ledger, name)
            found = _Replay.apply(tapes[key], ledger, name, *tensors)
        return found if tapes[key].as_tuple else found[0]

    network.forward = forward


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tape: _Tape, ledger: Ledger, name: str, *tensors):
        ledger.note(tape.forward)
        _take(tape.above_forward)
        ctx.tape, ctx.ledger, ctx.name = tape, ledger, name
        ctx.inputs = [
            (x.shape, x.stride(), x.dtype, x.device) if wanted else None
            for x, wanted in zip(tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(_take(tape.held))
        return tuple(_empty(*result) for result in tape.results)

    @staticmethod
    def backward(ctx, *gradients):
        tape, ledger = ctx.tape, ctx.ledger
        _ = ctx.saved_tensors  # raises where the graph was used before
        with ledger.part(ctx.name):
            ledger.note(tape.backward[gradients[0].is_contiguous()])
            _take(tape.above_backward)
            found = [None if known is None else _empty(*known) for known in ctx.inputs]
        return None, None, None, *found


def _recorded(original: Callable, args, kwargs, ledger: Ledger, name: str) -> _Tape:
    live, forward = ledger.live, Counts()
    backward = {True: Counts(), False: Counts()}
    peak, before = live.peak, live.now
    wanted: list[Tensor] = []

    def fresh(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x
        wanted.append(x.detach().requires_grad_())
        return wanted[-1]

    args, kwargs = _mapped((args, kwargs), fresh)
    live.peak = live.now
    with ledger.into(forward):
        out = original(*args, **kwargs)
    results = out if isinstance(out, tuple) else (out,)
    kind = "recorded" if wanted else "plain"
    forward.calls[name, kind] += 1
    forward.rows[name, kind] += len(results[0])
    above_forward = live.peak - before
    held = live.now - before - sum(x.untyped_storage().nbytes() for x in results)
    above_backward = 0
    if wanted:
        for contiguous, counts in backward.items():
            layout = torch.contiguous_format if contiguous else torch.preserve_format
            gradients = [torch.empty_like(x, memory_format=layout) for x in results]
            start = live.peak = live.now
            with ledger.into(counts):
                torch.autograd.grad(results, wanted, gradients, retain_graph=contiguous)
            counts.calls[name, "backward"] += 1
            above_backward = live.peak - start
    live.peak = peak
    described = tuple((x.shape, x.stride(), x.dtype, x.device) for x in results)
    return _Tape(
        described, isinstance(out, tuple), forward, backward, max(held, 0), above_forward,
        above_backward,
    )  # fmt: skip


def _stores(kwargs: Mapping[str, Any]) -> bool:
    """Whether the caller wants more of the U-Net than its output: each such pass is counted."""
    control = (kwargs.get("cross_attention_kwargs") or {}).get("control")
    return control is not None and control.store is not None


def _mapped(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same tree with ``function`` of each of its tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_mapped(value, function) for value in tree)
    if dataclasses.is_dataclass(tree):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **_mapped(fields, function))
    return tree


def _tensors_of(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(tree, lambda x: found.append(x) or x)
    return found


def _described(tree: Any) -> str:
    """What the cost of a pass depends on."""
    return str(_mapped(tree, lambda x: (tuple(x.shape), x.stride(), x.dtype, x.requires_grad)))


def _take(size: int) -> Tensor:
    """So many bytes, for whoever counts what is alive."""
    return torch.empty(size, dtype=torch.uint8)


def _empty(shape, stride, dtype, device) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)
