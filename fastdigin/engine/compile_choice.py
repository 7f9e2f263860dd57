"""Whether a batch's steps are compiled: yes, no, or where it is expected to pay.

``auto`` weighs what compiling costs against what it saves over the work that is known: the jobs of
the batch, and as many others as the caller has announced. Both are measured, once: the first batch
that seems worth it on assumed figures compiles one graph, which is then timed beside the uncompiled
step, and what that gave is remembered on disk for this model, machine and torch (the compiled code
too, in torch's own cache). Where the step did not get faster, nothing is compiled from then on.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey
from fastdigin.engine.costs import step_inputs
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.slot import Slot
from fastdigin.engine.steps import padded
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.storage import cache_folder, cache_key
from fastdigin_kernels.common import choices

log = logging.getLogger(__name__)

COMPILE = ("auto", "on", "off")

FEWEST_PASSES = 500
"""Steps there and back that "auto" needs to give compiling a thought; one job takes 400."""

BACKEND = "inductor"
TIMED = 3


@dataclass(frozen=True)
class Measured:
    """seconds: to compile one graph. speedup: of a step there and back."""

    seconds: float
    speedup: float

    def pays(self, graphs: int, seconds_of_work: float) -> bool:
        """Whether compiling so many graphs is expected to save time."""
        return seconds_of_work * (1 - 1 / self.speedup) > graphs * self.seconds


# For a machine on which nothing was measured yet. The embedded U-Net's 312 modules took 48 s of
# processor time with most kernels on disk, and more without; a step was 1.3x as fast
# (bench/NOTES.md). Both are taken for worse than that, so that short work is not held up.
ASSUMED_SECONDS_A_MODULE, ASSUMED_SPEEDUP = 0.3, 1.2


@dataclass(frozen=True)
class Work:
    """What is known to lie before a batch.

    keys: the graphs it needs. slots, guided, text_length: of the batch. passes: how often the
    batch will go through a step and back, all jobs together.
    """

    keys: frozenset[GraphKey]
    slots: int
    guided: bool
    text_length: int
    passes: float


def work_ahead(
    slots: Sequence[Slot], kept_steps: int, rows: int, guided: bool, jobs_left: int
) -> Work:
    """jobs_left: how many jobs will follow those in the slots; they count as the mean of these."""
    jobs, steps = [slot.job for slot in slots], slots[0].job.settings.steps
    evaluated = any(not slot.updates_left for slot in slots)
    roles = {"kept"} if kept_steps else set()
    roles |= {"forward", "joint"} if kept_steps < steps else {"forward"} if evaluated else set()
    injected = {False} | {job.injection is not None for job in jobs}
    injected_self = {False} | {job.self_injection is not None for job in jobs}
    updates = sum(job.settings.iterations for job in jobs) / len(jobs)
    return Work(
        keys=frozenset(
            GraphKey(role, rows, guided, *kinds)
            for role, *kinds in itertools.product(roles, injected, injected_self)
        ),
        slots=len(slots),
        guided=guided,
        text_length=jobs[0].conditioning.shape[-2],
        passes=updates * (1 + jobs_left / len(jobs)) * steps,
    )


class CompileChoice:
    """Holds the plain and the compiled step functions and says which a batch takes.

    mode: one of COMPILE. slots: called for how many jobs share a batch, at most; compiled batches
    have the rows of that many or of half of them. Raises UserError for another mode, and for "on"
    where nothing can be compiled.
    """

    def __init__(self, model: LatentDiffusion, mode: str, slots: Callable[[], int]):
        if mode not in COMPILE:
            raise UserError(f"compile must be one of {', '.join(COMPILE)}, got {mode!r}")
        self._model, self._mode, self._slots = model, mode, slots
        self._plain, self._compiled = StepFunctions(model), None
        self._measured: dict[tuple, Measured | None] = {}
        if mode == "on" and (reason := cannot_compile(model.device)):
            raise UserError(f"compile='on' is not possible here: {reason}; use 'off' or 'auto'")

    @property
    def functions(self) -> CompiledStepFunctions:
        """The compiled functions; nothing is compiled before they are called."""
        if self._compiled is None:
            # Read by torch when it compiles; whoever has set it keeps it.
            folder = cache_folder() / "compiled"
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
            rows = {row for guided in (True, False) for row in self._declared(guided)}
            self._compiled = CompiledStepFunctions(self._model, rows, BACKEND)
        return self._compiled

    @property
    def for_sampling(self) -> StepFunctions:
        """For sampling and inversion outside of jobs: nobody knows how much of it there will be."""
        return self.of(self._mode == "on")

    def of(self, compiled: bool) -> StepFunctions:
        """The functions for a plan."""
        return self.functions if compiled else self._plain

    @property
    def graphs(self) -> dict[GraphKey, int]:
        """How many graphs were compiled for each key so far."""
        return {} if self._compiled is None else dict(self._compiled.graphs)

    def rows(self, count: int, guided: bool) -> int:
        """The rows of a compiled batch of ``count`` jobs."""
        return min(rows for rows in self._declared(guided) if rows >= count)

    def _declared(self, guided: bool) -> set[int]:
        slots = self._slots()
        copies = 2 if guided else 1
        return {len(padded(range(n), copies=copies)) for n in (slots, (slots + 1) // 2)}

    def compiles(self, work: Work) -> bool:
        """Whether the batch is to be compiled. Says why in the log."""
        if self._mode != "auto":
            return self._mode == "on"
        place = work.slots, work.guided, work.text_length
        missing = work.keys - self.graphs.keys()
        if place in self._measured and (self._measured[place] is None or not missing):
            return self._measured[place] is not None
        if work.passes < FEWEST_PASSES:
            return False
        if reason := cannot_compile(self._model.device):
            log.info("compile: no, %s", reason)
            return False
        return self._breaks_even(work, place, len(missing))

    def _breaks_even(self, work: Work, place: tuple, graphs: int) -> bool:
        joint = any(key.role == "joint" for key in work.keys)
        eager = _seconds(self._there_and_back(False, joint, place), self._model.device)
        expected, source = self._expected(place), "measured"
        if expected is None:
            modules = sum(1 for _ in self._model.unet.modules())
            expected = Measured(ASSUMED_SECONDS_A_MODULE * modules, ASSUMED_SPEEDUP)
            source = "assumed"
        yes = expected.pays(graphs, work.passes * eager)
        log.info(
            "compile: %s, %.0f s of steps would be %.2fx as fast after %.0f s for %d graphs (%s)",
            "yes" if yes else "no", work.passes * eager, expected.speedup,
            graphs * expected.seconds, graphs, source,
        )  # fmt: skip
        if yes and place not in self._measured:
            self._measured[place] = self._try(joint, place)
        return yes and self._measured[place] is not None

    def _try(self, joint: bool, place: tuple) -> Measured | None:
        """Compiles a graph and times it beside the plain functions, in turns; None if it is slow.

        And if it cannot be compiled: "auto" promises no more than to take what is faster.
        """
        device, before = self._model.device, sum(self.graphs.values())
        plain, compiled = (self._there_and_back(each, joint, place) for each in (False, True))
        try:
            first = _seconds(compiled, device)
        except Exception:
            log.warning("compile: no, compiling a step failed", exc_info=True)
            return None
        pairs = [(_seconds(plain, device), _seconds(compiled, device)) for _ in range(TIMED)]
        plain_seconds, seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
        found = Measured(first - seconds, plain_seconds / seconds)
        log.info("compile: a step is %.2fx as fast, after %.0f s", found.speedup, found.seconds)
        if sum(self.graphs.values()) > before:  # else another batch has compiled it
            self._remember(place, found)
        return found if found.speedup > 1 else None

    def _there_and_back(self, compiled: bool, joint: bool, place: tuple) -> Callable:
        """A step of a batch, compiled with the rows that such a batch would have."""
        slots, guided, text_length = place
        if compiled:
            slots = self.rows(slots, guided)
        inputs, functions = step_inputs(self._model, slots, guided, text_length), self.of(compiled)
        ones = torch.ones_like(inputs[0])
        if joint:
            return lambda: functions.joint(*inputs, ones, ones)
        return lambda: functions.pull_back(functions.record(*inputs), ones, ones)

    def _expected(self, place: tuple) -> Measured | None:
        """What an earlier batch or an earlier process found."""
        with choices.locked(self._model.device, "compile") as remembered:
            text = remembered.get(self._key(place), "")
        try:
            seconds, speedup = map(float, text.split())
        except ValueError:
            return None
        return Measured(seconds, speedup)

    def _remember(self, place: tuple, found: Measured) -> None:
        with choices.locked(self._model.device, "compile") as remembered:
            remembered[self._key(place)] = f"{found.seconds:.3g} {found.speedup:.3g}"

    def _key(self, place: tuple) -> str:
        model = self._model
        return cache_key(
            dict(model.unet.config), model.latent_shape, model.dtype, torch.get_num_threads(), place
        )


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile has no chance, or None."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        return f"torch {torch.__version__} is too old to compile steps (2.14 is not)"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton, which it needs on CUDA, does not run"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:  # InvalidCxxCompiler
        return f"there is no C++ compiler ({error})"
    return None


def _seconds(function: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start
