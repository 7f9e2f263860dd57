"""Whether a batch's steps are compiled: yes, no, or where it is expected to pay.

``auto`` weighs what compiling costs against what it saves over the work that is known: the jobs of
the batch, and as many others as the caller has announced. Both are measured, once: the first batch
that seems worth it on assumed figures compiles one graph, which is then timed beside the uncompiled
step, and what that gave is remembered on disk for this model, machine and torch (the compiled code
too, in torch's own cache). Where the step did not get faster, nothing is compiled from then on.
"""

import inspect
import itertools
import logging
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastdigin import hardware
from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey, RecordedStepFunctions
from fastdigin.engine.costs import step_inputs, step_seconds
from fastdigin.engine.graphs import Graphs
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.slot import Slot
from fastdigin.engine.steps import whole_blocks
from fastdigin.errors import UserError, check_choice
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.storage import cache_key
from fastdigin_kernels.common import choices

log = logging.getLogger(__name__)

COMPILE = ("auto", "on", "off")

FEWEST_PASSES = 500
"""Steps there and back that "auto" needs to give compiling a thought; one job takes 400."""

BACKEND = "inductor"
TIMED = 3

# For a machine on which nothing was measured yet: seconds of compiling a module, and a step's
# speed-up. On CPUs the embedded U-Net's 312 modules took 48 s of processor time with most kernels
# on disk, and more without; a step was 1.3x as fast (bench/NOTES.md). Both are taken for worse than
# that, so that short work is not held up. For GPUs both are guesses: there is no C++ to compile,
# and of a step's time a third or more is in norms and activations, which compiling joins.
ASSUMED_SECONDS_A_MODULE = {"cpu": 0.3, "gpu": 0.15}
ASSUMED_SPEEDUP = {"cpu": 1.2, "gpu": 1.25}


@dataclass(frozen=True)
class Gain:
    """What compiling costs and gives. seconds: for one graph. speedup: of a step there and back."""

    seconds: float
    speedup: float

    def pays(self, graphs: int, seconds_of_work: float) -> bool:
        """Whether compiling so many graphs is expected to save time."""
        return seconds_of_work * (1 - 1 / self.speedup) > graphs * self.seconds


@dataclass(frozen=True)
class BatchKind:
    """Batches for which compiling gives the same."""

    slots: int
    guided: bool
    text_length: int


@dataclass(frozen=True)
class Work:
    """What is known to lie before a batch.

    kind: of the batch. graphs: those that it needs. passes: how often the batch will go through a
    step and back, all jobs together.
    """

    kind: BatchKind
    graphs: frozenset[GraphKey]
    passes: float


def work_ahead(
    slots: Sequence[Slot], kept_steps: int, rows: int, guided: bool, jobs_left: int
) -> Work:
    """jobs_left: how many jobs will follow those in the slots; they count as the mean of these."""
    jobs, steps = [slot.job for slot in slots], slots[0].job.settings.steps
    differentiated = len(slots[0].path)
    evaluated = any(not slot.updates_left for slot in slots)
    roles = {"kept"} if kept_steps else set()
    roles |= {"forward"} if kept_steps < steps or evaluated else set()
    roles |= {"joint"} if kept_steps < differentiated else set()
    injected = {False} | {job.injection is not None for job in jobs}
    injected_self = {False} | {job.self_injection is not None for job in jobs}
    updates = sum(job.settings.iterations for job in jobs) / len(jobs)
    return Work(
        kind=BatchKind(len(slots), guided, jobs[0].conditioning.shape[-2]),
        graphs=frozenset(
            GraphKey(role, rows, guided, *kinds)
            for role, *kinds in itertools.product(roles, injected, injected_self)
        ),
        passes=updates * (1 + jobs_left / len(jobs)) * differentiated,
    )


class CompileChoice:
    """Holds the uncompiled and the compiled step functions and says which a batch takes.

    Args:
        model: whose steps.
        mode: one of COMPILE.
        slots: called for how many jobs share a batch, at most; compiled batches have the rows of
            that many or of half of them.
        graphs: that the steps are replayed from; None runs them as they are.
        timer: ``step_seconds``, or what stands in for it.

    Raises:
        UserError: for another mode, and for "on" where nothing can be compiled.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        mode: str,
        slots: Callable[[], int],
        graphs: Graphs | None = None,
        timer: Callable[[StepFunctions, tuple, bool], float] | None = None,
    ):
        check_choice("compile", mode, COMPILE)
        self._model, self._mode, self._slots = model, mode, slots
        self._timer, self._graphs = timer or step_seconds, graphs
        self._uncompiled, self._compiled = StepFunctions(model), None
        if graphs is not None:
            self._uncompiled = RecordedStepFunctions(model, graphs)
        self._replayed: RecordedStepFunctions | None = None
        self._gains: dict[BatchKind, Gain | None] = {}
        if mode == "on" and (reason := cannot_compile(model.device)):
            raise UserError(f"compile='on' is not possible here: {reason}; use 'off' or 'auto'")

    @property
    def functions(self) -> CompiledStepFunctions:
        """The compiled functions; nothing is compiled before they are called."""
        if self._compiled is None:
            # Read by torch when it compiles; whoever has set it keeps it.
            folder = choices.cache_folder() / "compiled"
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
            rows = {row for guided in (True, False) for row in self._declared(guided)}
            self._compiled = CompiledStepFunctions(self._model, rows, BACKEND)
        return self._compiled

    @property
    def for_sampling(self) -> StepFunctions:
        """For a user's own sampling: batches of any size, so there is no graph for each of them."""
        return self.functions if self._mode == "on" else StepFunctions(self._model)

    @property
    def for_stages(self) -> StepFunctions:
        """For inversion: nobody knows how much there will be, but its batches have one size."""
        return self.of(self._mode == "on")

    def of(self, compiled: bool) -> StepFunctions:
        """The functions for a plan."""
        if not compiled:
            return self._uncompiled
        if self._graphs is None:
            return self.functions
        if self._replayed is None:
            self._replayed = RecordedStepFunctions(self._model, self._graphs, self.functions)
        return self._replayed

    @property
    def graphs(self) -> dict[GraphKey, int]:
        """How many graphs were compiled for each key so far."""
        return {} if self._compiled is None else dict(self._compiled.graphs)

    def rows(self, count: int, guided: bool, compiled: bool) -> int:
        """The rows of a batch of ``count`` jobs: as declared where it is compiled or recorded."""
        if compiled:
            return min(rows for rows in self._declared(guided) if rows >= count)
        if self._graphs is None:
            return count
        return min(self._slots(), 2 ** (count - 1).bit_length())

    def _declared(self, guided: bool) -> set[int]:
        slots = self._slots()
        copies = 2 if guided else 1
        return {len(whole_blocks(range(n), copies=copies)) for n in (slots, (slots + 1) // 2)}

    def compiles(self, work: Work) -> bool:
        """Whether the batch is to be compiled. Says why in the log."""
        if self._mode != "auto":
            return self._mode == "on"
        missing = work.graphs - self.graphs.keys()
        if work.kind in self._gains and (self._gains[work.kind] is None or not missing):
            return self._gains[work.kind] is not None
        if work.passes < FEWEST_PASSES:
            return False
        if reason := cannot_compile(self._model.device):
            log.info("compile: no, %s", reason)
            return False
        if not self._breaks_even(work, len(missing)):
            return False
        if work.kind not in self._gains:
            self._gains[work.kind] = self._try(work)
        return self._gains[work.kind] is not None

    def _breaks_even(self, work: Work, graphs: int) -> bool:
        if self._graphs is not None:
            self._seconds(work, compiled=False)  # records it
        seconds = work.passes * self._seconds(work, compiled=False)
        expected, source = self._remembered(work.kind), "measured"
        if expected is None:
            modules = sum(1 for _ in self._model.unet.modules())
            kind = "gpu" if hardware.of(self._model.device).is_gpu else "cpu"
            seconds_each = ASSUMED_SECONDS_A_MODULE[kind] * modules
            expected = Gain(seconds_each, ASSUMED_SPEEDUP[kind])
            source = "assumed"
        yes = expected.pays(graphs, seconds)
        log.info(
            "compile: %s, %.0f s of steps would be %.2fx as fast after %.0f s for %d graphs (%s)",
            "yes" if yes else "no", seconds, expected.speedup, graphs * expected.seconds, graphs,
            source,
        )  # fmt: skip
        return yes

    def _try(self, work: Work) -> Gain | None:
        """Compiles a graph and measures what it gives; None if that is nothing.

        And if it cannot be compiled: "auto" promises no more than to take what is faster.
        """
        before = sum(self.graphs.values())
        try:
            first = self._seconds(work, compiled=True)
        except Exception:
            log.warning("compile: no, compiling a step failed", exc_info=True)
            return None
        pairs = [[self._seconds(work, each) for each in (False, True)] for _ in range(TIMED)]
        uncompiled, compiled = map(statistics.median, zip(*pairs, strict=True))
        gain = Gain(first - compiled, uncompiled / compiled)
        log.info("compile: a step is %.2fx as fast, after %.0f s", gain.speedup, gain.seconds)
        if sum(self.graphs.values()) > before:  # else another batch has compiled it
            self._remember(work.kind, gain)
        return gain if gain.speedup > 1 else None

    def _seconds(self, work: Work, compiled: bool) -> float:
        """Of a step of such a batch, compiled with the rows that it would have then."""
        kind, kept = work.kind, not any(graph.role == "joint" for graph in work.graphs)
        slots = self.rows(kind.slots, kind.guided, compiled)
        inputs = step_inputs(self._model, slots, kind.guided, kind.text_length)
        return self._timer(self.of(compiled), inputs, kept)

    def _remembered(self, kind: BatchKind) -> Gain | None:
        """What an earlier batch or an earlier process found."""
        with choices.locked(self._model.device, "compile") as found:
            text = found.get(self._key(kind), "")
        try:
            seconds, speedup = map(float, text.split())
        except ValueError:
            return None
        return Gain(seconds, speedup)

    def _remember(self, kind: BatchKind, gain: Gain) -> None:
        with choices.locked(self._model.device, "compile") as found:
            found[self._key(kind)] = f"{gain.seconds:.3g} {gain.speedup:.3g}"

    def _key(self, kind: BatchKind) -> str:
        model = self._model
        return cache_key(
            dict(model.unet.config), model.latent_shape, model.dtype, torch.get_num_threads(), kind
        )


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile has no chance, or None."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        return f"torch {torch.__version__} is too old to compile steps: they need 2.13 or newer"
    if hardware.of(device).is_gpu:
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton, which it needs on CUDA, does not run"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:  # InvalidCxxCompiler
        return f"there is no C++ compiler ({error})"
    return None
