"""Which implementation of attention runs, and how ``auto`` decides.

``auto`` times the candidates once, forward and backward as the optimisation needs them, and keeps
to the fastest. Results must be the same bits in any slot and beside any neighbours, so the choice
may only depend on what is equal for all of them:

- The batch size is not part of the key. Prompt-to-prompt splits a batch into an unconditional and a
  conditional half; a job whose neighbour injects would else get another implementation than alone.
  The candidates are timed at one batch size per shape, whatever the caller's.
- Strides are not part of it either: candidates are timed in the layout that the U-Net gives, and a
  compiler that copies an operand must not change the choice.
- Injected attention takes the implementation of the plain attention of its own queries and keys.
- With or without a gradient it is the same choice, so that recomputed steps repeat the first ones.

Timings vary from run to run, and so may a choice between near equals. It is therefore remembered on
disk (choices.py), and torch's own attention stays unless another is clearly faster. Whoever needs
the same bits on a machine that remembers nothing names an implementation instead of "auto".
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastdigin_kernels.attention import operations as attention_ops
from fastdigin_kernels.attention.operations import BACKENDS, BackendError, backend
from fastdigin_kernels.attention.sdpa import sdpa
from fastdigin_kernels.common import choices

IMPLEMENTATIONS = ("auto", "sdpa", *BACKENDS, "reference")

_CANDIDATES = {"cpu": ("sdpa", "cpp"), "cuda": ("sdpa", "triton")}
_MARGIN = 0.95
"""Of torch's time that another implementation must stay below, or torch's own is taken."""
_TIMED_ROWS, _TIMED_BATCH = 16384, 16
_ROUNDS, _SECONDS = 7, 1.0

_log = logging.getLogger(__name__)
_chosen: dict[str, str] = {}


def check_impl(impl: str) -> None:
    """Raises ValueError if there is no implementation of that name."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


def unavailable(impl: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why ``impl`` cannot serve such tensors on this machine, or None if it can."""
    check_impl(impl)
    if impl not in BACKENDS:
        return None
    probe = torch.empty(1, 1, 1, head_size, device=device, dtype=dtype)
    try:
        return backend(impl).unsupported(probe, probe, probe)
    except BackendError as error:
        return str(error)


def choose(q_bhnd: Tensor, k_bhtd: Tensor) -> str:
    """What ``auto`` stands for at these shapes: the name of another implementation.

    The first call of a kind takes up to some seconds.
    """
    _, heads, image_tokens, size = q_bhnd.shape
    return _choose(
        heads, image_tokens, k_bhtd.shape[2], size, str(q_bhnd.dtype), str(q_bhnd.device)
    )


@torch.compiler.assume_constant_result
def _choose(heads: int, image_tokens: int, tokens: int, size: int, dtype: str, device: str) -> str:
    """A constant to compilers, which may call it while they trace."""
    shape = (heads, image_tokens, tokens, size)
    key = f"{shape} {dtype} on {device}, {torch.get_num_threads()} threads"
    if key not in _chosen:
        found: list[str | BaseException] = []

        def decide():
            try:
                found.append(_decide(key, shape, getattr(torch, dtype[6:]), torch.device(device)))
            except BaseException as error:  # noqa: BLE001 - raised again below
                found.append(error)

        # In a thread of its own there is no fake tensor mode, no transform and no autocast.
        thread = threading.Thread(target=decide)
        thread.start()
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        _chosen[key] = found[0]
    return _chosen[key]


def _decide(key: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    candidates = _CANDIDATES.get(device.type, ("sdpa",))
    able = [name for name in candidates if unavailable(name, device, dtype, shape[-1]) is None]
    if len(able) == 1 or 0 in shape:
        return "sdpa"
    with choices.locked(device) as remembered:
        if remembered.get(key) in able:
            return remembered[key]
        milliseconds = _time(able, shape, dtype, device)
        rival = min(milliseconds, key=milliseconds.get)
        chosen = rival if milliseconds[rival] < _MARGIN * milliseconds["sdpa"] else "sdpa"
        _log.info(
            "attention %s: %s (%s)", key, chosen,
            ", ".join(f"{name} {ms:.3g} ms" for name, ms in milliseconds.items()),
        )  # fmt: skip
        remembered[key] = chosen
    return chosen


def _time(
    names: list[str], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of forward and backward, taken in turns."""
    heads, image_tokens, tokens, size = shape
    batch = min(_TIMED_BATCH, -(-_TIMED_ROWS // (heads * image_tokens)))
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(batch, rows, heads, size, generator=generator, device=device, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_(gradient)
        for rows, gradient in (
            (image_tokens, True), (tokens, True), (tokens, True), (image_tokens, False),
        )
    )  # fmt: skip

    def run(name: str) -> None:
        out = sdpa(q, k, v) if name == "sdpa" else attention_ops.attention(q, k, v, name)
        torch.autograd.grad(out, (q, k, v), grad)

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
