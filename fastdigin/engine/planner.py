"""Slots and kept steps for a memory budget.

Slots come first: eight images in a batch take 0.4 of the time of eight alone (measured on two CPU
cores; more than eight gained nothing), while keeping all steps saves a third of it at most. What
memory is left keeps steps. Kept steps change no bit of a result; another number of slots changes
the last ones, so whoever wants the same bits whatever the memory gives ``slots``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.costs import Costs, StepCosts, job_bytes, measure_step, state_bytes
from fastdigin.engine.judging import Prediction, judge
from fastdigin.engine.memory import parse_memory, show_bytes
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError
from fastdigin.hardware import measure
from fastdigin.models.diffusion import LatentDiffusion

log = logging.getLogger(__name__)

SLOTS = (1, 2, 4, 8)
"""Numbers of slots that are planned; the most that fit are the fastest."""


@dataclass(frozen=True)
class Plan:
    """How the iterations of a batch are run.

    slots: how many advance together. kept_steps: how many of their steps keep their graphs. width:
    how many images are decoded and judged at a time. predicted: most bytes alive in an iteration
    beyond what lived before it; it and ``budget`` are None where the numbers were given, or found
    by running out of memory. compiled: whether the steps are (compile_choice.py).
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
        self, model: LatentDiffusion, memory: str | int, slots: int | None, kept_steps: int | None
    ):
        parse_memory(memory, model.device)
        self.model, self._memory = model, memory
        self._slots, self._kept_steps = slots, kept_steps
        self._measured: dict[tuple[bool, int], StepCosts] = {}

    @property
    def slots(self) -> int:
        """How many jobs share a batch, at most."""
        if self._slots is None:
            self._slots = self._plan_slots()
        return self._slots

    def _plan_slots(self) -> int:
        """For a usual job: the losses are not known yet, only the decode is."""
        model = self.model
        steps, scale = model.usual_steps, model.usual_guidance_scale
        loss = self._peak_of(
            lambda x0: torch.autograd.grad(model.decode(x0.requires_grad_()[None]).sum(), x0)
        )
        costs = self._costs(steps, model.has_null_branch(scale), model.text_length, loss)
        kept_steps = self._kept_choices(steps)[0]
        return self._largest([(slots, kept_steps, 1) for slots in SLOTS], costs.peak)[0]

    def plan(self, slots: Sequence[Slot], rows: int = 0) -> Plan:
        """How many steps to keep for these very jobs.

        Args:
            slots: of the batch, all of them.
            rows: how many the batch will have, if it has more.
        """
        count, widths = len(slots), self._widths(len(slots))
        slot = next((each for each in slots if each.updates_left), None)
        if slot is None:  # only evaluated: there is no backward to keep anything for
            return Plan(count, 0, widths[-1])
        settings, length = slot.job.settings, slot.job.conditioning.shape[-2]
        kept_steps = self._kept_choices(settings.steps)
        if len(kept_steps) == len(widths) == 1 and self._memory == "auto":
            return Plan(count, kept_steps[0])

        loss = self._peak_of(
            lambda x0: judge(self.model, [Prediction(slot, x0, step=0, weight=1.0, last=False)])
        )
        guided = self.model.has_null_branch(settings.guidance_scale)
        job = max(job_bytes(each.job) for each in slots)
        costs = replace(self._costs(settings.steps, guided, length, loss), job=job)

        def peak(slots: int, kept_steps: int, width: int) -> int:
            return costs.peak(max(slots, rows), kept_steps, width)

        choices = [(count, kept_steps[0], width) for width in widths]
        choices += [(count, kept, widths[-1]) for kept in kept_steps[1:]]
        best = self._largest(choices, peak)
        return Plan(*best, peak(*best), self._budget())

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
        return Costs(steps, step, state_bytes(self.model, steps, text_length), loss)
