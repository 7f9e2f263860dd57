"""Which implementation of an operation runs, and how ``auto`` decides.

Beside PyTorch's own operations there are backends for each kind of device: C++ for CPUs, Triton
(and cuDNN's attention) for CUDA. ``auto`` takes one where it can run and is faster. An operation
either says that it always is, or all are timed once per shape, forward and backward as the
optimisation needs them; one whose results are not PyTorch's is not taken.

On CPUs results must be the same bits in any slot and beside any neighbours, so the choice may only
depend on what is equal for all of them:

- The batch size is not part of the shape. Prompt-to-prompt splits a batch into an unconditional and
  a conditional half; a job whose neighbour injects would else get another implementation than
  alone. All are timed at one batch size per shape, whatever the caller's.
- Strides are not part of it either: all are timed in the layout that the U-Net gives, and a
  compiler that copies an operand must not change the choice.
- With or without a gradient it is the same choice, so that recomputed steps repeat the first ones.

On CUDA all are timed at the caller's batch. Where PyTorch is told to use deterministic algorithms,
nothing is timed there: our own kernels are taken wherever they can run, because the backwards of
fused attention add up in any order, and near equals would be chosen by chance.

Timings vary from run to run, and so may a choice between near equals. It is therefore remembered on
disk (choices.py), and PyTorch's own stays unless a backend is clearly faster. Whoever needs the
same bits on a machine that remembers nothing names an implementation instead of "auto".
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fastdigin_kernels.common import choices, devices
from fastdigin_kernels.common.clocks import time_in_turns
from fastdigin_kernels.common.registry import BackendError, backend

_MARGIN = 0.95
"""Of PyTorch's time that a backend must stay below, or PyTorch's own is taken."""
_TIMED_BATCH = 16
_ALLOWED = 0.02  # of their size, that results in 16 bits may differ by

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
Run = Callable[[str], Sequence[Tensor]]


@dataclass(frozen=True)
class Operation:
    """own: the name of PyTorch's own implementation. implementations: all names, "auto" included.

    prepare: (shape, batch, dtype, device) -> a function that runs the implementation of a name
    once, forward and backward, and gives the results; batch is None where `timed_batch` is meant.
    None if no choice needs timing.
    rivals: kind of device -> the backends that `auto` may take, the deterministic one first.
    untimed: kinds of device on which the backend is known to be faster. expected: of a shape,
    whether the first backend is expected to be faster where nothing can be timed.
    """

    own: str
    implementations: Sequence[str]
    prepare: Callable[[Shape, int | None, torch.dtype, torch.device], Run] | None
    untimed: Sequence[str] = ()
    expected: Callable[[Shape], bool] = lambda shape: True
    rivals: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"cpu": ("cpp",), "cuda": ("triton",)}
    )


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


def choose(name: str, impl: str, shape: Shape, x: Tensor) -> str:
    """What ``impl`` stands for: itself, or what ``auto`` takes; the first time it may take seconds.

    name: of the operation. shape: what may decide which is faster, without the batch; the last
    number may decide what can run. x: an input, for batch, dtype and device.

    Raises ValueError if there is no implementation of that name, and BackendError where it cannot
    run: none is put in its place.
    """
    operation = _operations[name]
    if impl == operation.own:
        return impl
    # A compiler makes constants of what is handed on, so it is as little as serves.
    kind = devices.kind_of(x.device)
    if impl != "auto":
        shape = shape[-1:]
    elif kind in operation.untimed:
        shape = ()
    elif kind == "cuda":
        shape = (x.shape[0], *shape)
    if torch.compiler.is_compiling():
        # An unknown length becomes a known one, which its compiled code is then for: what is
        # faster differs from length to length.
        shape = tuple(len(range(n)) for n in shape)
    return _choose(name, impl, shape, x.dtype, x.device)


@torch.compiler.assume_constant_result
def _choose(name: str, impl: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> str:
    """A constant to compilers, which may call it while they trace.

    shape: as `choose` hands it on; for ``auto`` on CUDA it begins with the batch.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    place = devices.pretended() or device
    key = (name, impl, shape, dtype, place, torch.get_num_threads(), deterministic)
    if key in _chosen:
        return _chosen[key]
    batch = None
    if impl == "auto" and shape and devices.kind_of(device) == "cuda":
        batch, *rest = shape
        shape = tuple(rest)
    chosen = _decide(name, impl, shape, batch, dtype, device)
    if not _is_recording(device):
        _chosen[key] = chosen
    return chosen


def unavailable(
    name: str, impl: str, shape: Shape, dtype: torch.dtype, device: torch.device
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
    name: str,
    impl: str,
    shape: Shape,
    batch: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    reason = unavailable(name, impl, shape, dtype, device)
    if reason is not None:
        about = f"{shape} {dtype} on {device}".replace("torch.", "")
        raise BackendError(f"{name} by {impl!r} cannot take {about}: {reason}")
    if impl != "auto":
        return impl
    operation, kind = _operations[name], devices.kind_of(device)
    rivals = [
        rival
        for rival in operation.rivals.get(kind, ())
        if unavailable(name, rival, shape, dtype, device) is None
    ]
    if not rivals or 0 in shape or batch == 0:
        return operation.own
    if kind in operation.untimed:
        return rivals[0]
    if kind == "cuda" and torch.are_deterministic_algorithms_enabled():
        return rivals[0]
    if devices.pretended() is not None or _is_recording(device):  # nothing can be timed
        return rivals[0] if operation.expected(shape) else operation.own
    names = (operation.own, *rivals)
    at = "" if batch is None else f" batch {batch}"
    key = f"{shape}{at} {dtype} on {device}, {torch.get_num_threads()} threads"

    def decide() -> str:
        with torch.cuda.device(device) if kind == "cuda" else contextlib.nullcontext():
            run = operation.prepare(shape, batch, dtype, device)
            sound = _sound(names, run)
            milliseconds = time_in_turns({each: partial(run, each) for each in sound}, kind)
        fastest = min(milliseconds, key=milliseconds.get)
        if milliseconds[fastest] >= _MARGIN * milliseconds[operation.own]:
            fastest = operation.own
        _log.info(
            "%s %s: %s (%s)", name, key, fastest,
            ", ".join(f"{impl} {ms:.3g} ms" for impl, ms in milliseconds.items()),
        )  # fmt: skip
        return fastest

    # In a thread of its own there is no fake tensor mode, no transform and no autocast.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(choices.remembered, name, device, key, names, decide).result()


def _sound(names: Sequence[str], run: Run) -> list[str]:
    """Those whose results are the first one's, which is PyTorch's own; cuDNN's may hold NaN.

    One that fails is not taken either: cuDNN knows no plan for some shapes, and Triton needs a C
    compiler.
    """
    own = run(names[0])
    sound = [names[0]]
    for name in names[1:]:
        try:
            found = run(name)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _log.warning("%s is not taken: %s: %s", name, type(error).__name__, error)
            continue
        differences = [float((a - e).norm() / e.norm()) for a, e in zip(found, own, strict=True)]
        if all(difference <= _ALLOWED for difference in differences):
            sound.append(name)
        else:
            _log.warning("%s is not taken: its results differ by %s", name, differences)
    return sound


def _is_recording(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, inside which nothing may wait."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
