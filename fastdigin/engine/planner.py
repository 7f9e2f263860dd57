"""Slots and kept steps for a memory budget.

Slots come first: eight images in a batch take 0.4 of the time of eight alone (measured on two CPU
cores; more than eight gained nothing), while keeping all steps saves a third of it at most. On a
GPU nobody knows beforehand how many pay: there a step is timed with ever more. What memory is left
judges images together, and then keeps steps. Kept steps change no bit of a result; another number
of slots changes the last ones, so whoever wants the same bits whatever the memory gives ``slots``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.compiled import RecordedStepFunctions
from fastdigin.engine.costs import (
    Costs,
    StepCosts,
    job_bytes,
    measure_step,
    state_bytes,
    step_inputs,
    step_seconds,
)
from fastdigin.engine.graphs import Graphs
from fastdigin.engine.judging import Prediction, judge
from fastdigin.engine.memory import is_out_of_memory, parse_memory, show_bytes
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError
from fastdigin.hardware import measure
from fastdigin.models.diffusion import LatentDiffusion

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOTS = (1, 2, 4, 8)
"""Numbers of slots that are planned on CPUs; the most that fit are the fastest."""

TIMED = 3
SLOTS_OF_GPU, LEAST_GAIN = (1, 2, 4, 8, 16, 32, 64), 1.05
"""Likewise on GPUs, up to where another doubling makes an image's step less than 5% faster."""


@dataclass(frozen=True)
class Plan:
    """How the iterations of a batch are run.

    slots: how many advance together. kept_steps: how many of their steps keep their graphs. width:
    how many images are decoded and judged at a time. predicted: most bytes alive in an iteration,
    the jobs' own tensors included, beside weights and graphs of other work; it and ``budget`` are
    None where the numbers were given, or found by running out of memory. compiled: whether the
    steps are (compile_choice.py).
    """

    slots: int
    kept_steps: int
    width: int = 1
    predicted: int | None = None
    budget: int | None = None
    compiled: bool = False

    def halved(self) -> Plan | None:
        """What to try when memory has run out all the same; None when nothing is left to halve."""
        if self.kept_steps:
            return self._smaller(kept_steps=self.kept_steps // 2)
        if self.slots == 1:
            return None
        return self._smaller(slots=(self.slots + 1) // 2)

    def _smaller(self, **changes: int) -> Plan:
        return replace(self, **changes, predicted=None, budget=None)

    def __str__(self) -> str:
        text = f"{self.slots} slots, {self.kept_steps} kept steps, {self.width} decoded at a time"
        text += ", compiled" * self.compiled
        if self.predicted is None:
            return text
        return f"{text}: {show_bytes(self.predicted)} of {show_bytes(self.budget)}"


class Planner:
    """Measures when it must, and plans. None asks for the best of what the memory allows.

    Raises UserError for a malformed ``memory``, and when planning if an explicit budget is too
    small for even the least; "auto" goes on with the least and a warning.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        memory: str | int,
        slots: int | None,
        kept_steps: int | None,
        graphs: Graphs | None = None,
    ):
        parse_memory(memory, model.device)
        self.model, self._memory = model, memory
        self._slots, self._kept_steps, self._graphs = slots, kept_steps, graphs
        self._measured: dict[tuple[bool, int], StepCosts] = {}

    @property
    def slots(self) -> int:
        """How many jobs share a batch, at most."""
        if self._slots is None:
            self._slots = self._or_least(self._plan_slots, 1)
        return self._slots

    def _or_least(self, plan: Callable[[], T], least: T) -> T:
        """``least`` where there is no memory to measure what is planned."""
        try:
            return plan()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory while planning; going on with %s: %s", least, error)
        return least

    def _plan_slots(self) -> int:
        """For a usual job: the losses are not known yet, only the decode is."""
        model = self.model
        on_gpu = hardware.of(model.device).is_gpu
        steps, guided = model.usual_steps, model.has_null_branch(model.usual_guidance_scale)
        loss = self._peak_of(
            lambda x0: torch.autograd.grad(model.decode(x0.requires_grad_()[None]).sum(), x0)
        )
        costs = self._costs(steps, guided, model.text_length, loss)
        kept_steps, counts = self._kept_choices(steps)[0], SLOTS_OF_GPU if on_gpu else SLOTS
        most = self._largest([(slots, kept_steps, 1) for slots in counts], costs.peak)[0]
        return self._worthwhile(most, guided) if on_gpu else most

    def _worthwhile(self, most: int, guided: bool) -> int:
        """The slots of which the last doubling has paid, up to ``most``; timed on the spot."""
        model, best, before = self.model, 1, math.inf
        for count in (count for count in SLOTS_OF_GPU if count <= most):
            functions = StepFunctions(model)
            if self._graphs is not None:
                functions = RecordedStepFunctions(model, self._graphs)
            inputs = step_inputs(model, count, guided, model.text_length)
            try:
                times = [step_seconds(functions, inputs, kept=False) for _ in range(1 + TIMED)]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            finally:
                if self._graphs is not None:
                    self._graphs.clear()
            each = min(times[1:]) / count  # the first makes choices, and the graph
            log.info("%d slots: %.3g s for a step of one", count, each)
            if before / each < LEAST_GAIN:
                break
            best, before = count, each
        return best

    def plan(self, slots: Sequence[Slot], rows: int = 0) -> Plan:
        """How many steps to keep for these very jobs, and how many images to judge at a time.

        Args:
            slots: of the batch, all of them.
            rows: how many the batch will have, if it has more.
        """
        return self._or_least(lambda: self._plan(slots, rows), Plan(len(slots), 0))

    def _plan(self, slots: Sequence[Slot], rows: int) -> Plan:
        count, widths = len(slots), self._widths(len(slots))
        slot = next((each for each in slots if each.updates_left), None)
        if slot is None:  # only evaluated: there is no backward to keep anything for
            return Plan(count, 0, widths[-1])
        settings, length = slot.job.settings, slot.job.conditioning.shape[-2]
        kept_steps = self._kept_choices(len(slot.path))
        if len(kept_steps) == len(widths) == 1 and self._memory == "auto":
            return Plan(count, kept_steps[0])

        guided = self.model.has_null_branch(settings.guidance_scale)
        kind = count, rows, settings.steps, len(slot.path), guided, length
        planned = self._graphs and self._graphs.planned
        if planned and planned[0] != kind:
            self._graphs.clear()  # of another kind of batch, which would take this one's memory
        loss = self._peak_of(
            lambda x0: judge(self.model, [Prediction(slot, x0, step=0, weight=1.0, last=False)])
        )
        job = max(job_bytes(each.job) for each in slots)
        costs = self._costs(settings.steps, guided, length, loss)
        costs = replace(costs, steps=len(slot.path), job=job)

        def peak(slots: int, kept_steps: int, width: int) -> int:
            return costs.peak(max(slots, rows), kept_steps, width)

        choices = [(count, kept_steps[0], width) for width in widths]
        choices += [(count, kept, widths[-1]) for kept in kept_steps[1:]]
        best, budget = self._largest(choices, peak), self._budget()
        if self._graphs is not None:
            self._graphs.planned = kind, budget
        return Plan(*best, peak(*best), budget)

    def _widths(self, count: int) -> list[int]:
        """One image at a time where bits are promised, else as many as possible."""
        if not hardware.of(self.model.device).is_gpu:
            return [1]
        return [2**n for n in range(count.bit_length()) if 2**n < count] + [count]

    def _kept_choices(self, steps: int) -> range:
        if self._kept_steps is None:
            return range(steps + 1)
        kept = min(self._kept_steps, steps)
        return range(kept, kept + 1)

    def _largest(
        self, choices: Sequence[tuple[int, int, int]], peak: Callable[[int, int, int], int]
    ) -> tuple[int, int, int]:
        """The last (slots, kept steps, width) that fits; where none does, the first for "auto".

        A budget that was given is too small then: an error.
        """
        budget = self._budget()
        fitting = [choice for choice in choices if peak(*choice) <= budget]
        if fitting:
            return fitting[-1]
        slots, kept_steps, _ = choices[0]
        message = (
            f"memory: {show_bytes(budget)} do not hold {slots} slot{'s' * (slots > 1)} with "
            f"{kept_steps} kept steps, which take {show_bytes(peak(*choices[0]))}: give more "
            "memory or fewer slots"
        )
        if self._memory != "auto":
            raise UserError(message)
        log.warning("%s; trying all the same", message)
        return choices[0]

    def _budget(self) -> int:
        if self._graphs is not None and self._graphs.planned is not None:
            return self._graphs.planned[1]  # in which their memory lies
        return parse_memory(self._memory, self.model.device)

    def _peak_of(self, gradient_of: Callable[[Tensor], object]) -> int:
        """Most bytes alive while one x0 is decoded, judged and reduced to its gradient.

        0 where that fails: it will again when the job's turn comes, which then fails alone.
        """
        x0 = torch.zeros(
            self.model.latent_shape, device=self.model.device, dtype=self.model.state_dtype
        )
        try:
            with torch.enable_grad():
                return measure(lambda: gradient_of(x0), self.model.device)[1]
        except Exception as error:
            log.info("the losses could not be measured: %s", error)
            return 0

    def _costs(self, steps: int, guided: bool, text_length: int, loss: int) -> Costs:
        if (guided, text_length) not in self._measured:
            self._measured[guided, text_length] = measure_step(self.model, guided, text_length)
        step = self._measured[guided, text_length]
        state = state_bytes(self.model, steps, text_length)
        return Costs(steps, step, state, loss, recorded=self._graphs is not None)
