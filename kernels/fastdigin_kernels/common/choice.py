"""Which implementation of an operation runs, and how ``auto`` decides.

Beside PyTorch's own operations there is one backend for each kind of device: C++ for CPUs, Triton
for CUDA. ``auto`` takes it where it can run and is faster. An operation either says that it always
is, or both are timed once per shape, forward and backward as the optimisation needs them. Results
must be the same bits in any slot and beside any neighbours, so the choice may only depend on what
is equal for all of them:

- The batch size is not part of the shape. Prompt-to-prompt splits a batch into an unconditional and
  a conditional half; a job whose neighbour injects would else get another implementation than
  alone. Both are timed at one batch size per shape, whatever the caller's.
- Strides are not part of it either: both are timed in the layout that the U-Net gives, and a
  compiler that copies an operand must not change the choice.
- With or without a gradient it is the same choice, so that recomputed steps repeat the first ones.

Timings vary from run to run, and so may a choice between near equals. It is therefore remembered on
disk (choices.py), and PyTorch's own stays unless the backend is clearly faster. Whoever needs the
same bits on a machine that remembers nothing names an implementation instead of "auto".
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin_kernels.common import choices, devices
from fastdigin_kernels.common.registry import BackendError, backend

BACKENDS = {"cpu": "cpp", "cuda": "triton"}

_MARGIN = 0.95
"""Of PyTorch's time that the backend must stay below, or PyTorch's own is taken."""
_TIMED_BATCH, _ROUNDS, _SECONDS = 16, 7, 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """own: the name of PyTorch's own implementation. implementations: all names, "auto" included.

    prepare: (shape, dtype, device) -> a function that runs the implementation of a name once,
    forward and backward. untimed: kinds of device on which the backend is known to be faster.
    expected: of a shape, whether the backend is expected to be faster where nothing can be timed,
    on a pretended device.
    """

    own: str
    implementations: Sequence[str]
    prepare: Callable[[tuple[int, ...], torch.dtype, torch.device], Callable[[str], None]]
    untimed: Sequence[str] = ()
    expected: Callable[[tuple[int, ...]], bool] = lambda shape: True


_operations: dict[str, Operation] = {}
_chosen: dict[tuple, str] = {}


def declare(name: str, operation: Operation) -> None:
    """Makes the operation known to `choose`."""
    _operations[name] = operation


def own(name: str) -> str:
    """The name of PyTorch's own implementation of an operation."""
    return _operations[name].own


def implementations(name: str) -> Sequence[str]:
    """All names of an operation's implementations, "auto" first."""
    return _operations[name].implementations


def choose(name: str, impl: str, shape: tuple[int, ...], x: Tensor) -> str:
    """What ``impl`` stands for: itself, or what ``auto`` takes; the first time it may take seconds.

    name: of the operation. shape: what may decide which is faster, without the batch; the last
    number may decide what can run. x: an input, for dtype and device.

    Raises ValueError if there is no implementation of that name, and BackendError where it cannot
    run: none is put in its place.
    """
    operation = _operations[name]
    if impl == operation.own:
        return impl
    # A compiler makes constants of what is handed on, so it is as little as serves.
    if devices.kind_of(x.device) in operation.untimed:
        shape = ()
    elif impl != "auto":
        shape = shape[-1:]
    return _choose(name, impl, shape, x.dtype, x.device)


@torch.compiler.assume_constant_result
def _choose(
    name: str, impl: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    """A constant to compilers, which may call it while they trace."""
    key = (name, impl, shape, dtype, devices.pretended() or device, torch.get_num_threads())
    if key not in _chosen:
        _chosen[key] = _decide(name, impl, shape, dtype, device)
    return _chosen[key]


def unavailable(
    name: str, impl: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why ``impl`` cannot run here on tensors of such a shape, or None if it can.

    Raises ValueError if the operation has no implementation of that name.
    """
    names = _operations[name].implementations
    if impl not in names:
        raise ValueError(f"impl must be one of {', '.join(names)}, got {impl!r}")
    if impl in ("auto", "reference", _operations[name].own):
        return None
    try:
        return backend(name, impl).unsupported(device, dtype, shape)
    except BackendError as error:
        return str(error)


def timed_batch(numbers: int, most: int) -> int:
    """For ``prepare``: 16 samples of so many numbers, or as few as have ``most`` numbers."""
    return min(_TIMED_BATCH, -(-most // numbers))


def _decide(
    name: str, impl: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    reason = unavailable(name, impl, shape, dtype, device)
    if reason is not None:
        about = f"{shape} {dtype} on {device}".replace("torch.", "")
        raise BackendError(f"{name} by {impl!r} cannot take {about}: {reason}")
    if impl != "auto":
        return impl
    kind = devices.kind_of(device)
    operation, rival = _operations[name], BACKENDS.get(kind)
    if rival is None or 0 in shape or unavailable(name, rival, shape, dtype, device) is not None:
        return operation.own
    if kind in operation.untimed:
        return rival
    if devices.pretended() is not None:
        return rival if operation.expected(shape) else operation.own
    names = (operation.own, rival)
    key = f"{shape} {dtype} on {device}, {torch.get_num_threads()} threads"

    def decide() -> str:
        milliseconds = _time(names, operation.prepare(shape, dtype, device), device)
        faster = milliseconds[rival] < _MARGIN * milliseconds[operation.own]
        _log.info(
            "%s %s: %s (%s)", name, key, names[faster],
            ", ".join(f"{impl} {ms:.3g} ms" for impl, ms in milliseconds.items()),
        )  # fmt: skip
        return names[faster]

    # In a thread of its own there is no fake tensor mode, no transform and no autocast.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(choices.remembered, name, device, key, names, decide).result()


def _time(
    names: Sequence[str], run: Callable[[str], None], device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # once untimed
        _seconds(run, name, device)
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        for name in names:
            seconds[name].append(_seconds(run, name, device))
        if time.perf_counter() - start > _SECONDS:
            break
    return {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}


def _seconds(run: Callable[[str], None], name: str, device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run(name)
    synchronize()
    return time.perf_counter() - start
