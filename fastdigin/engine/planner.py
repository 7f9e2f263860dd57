"""Slots and kept steps for a memory budget.

Slots come first: eight images in a batch take 0.4 of the time of eight alone (measured on two CPU
cores; more than eight gained nothing), while keeping all steps saves a third of it at most. What
memory is left keeps steps. Kept steps change no bit of a result; another number of slots changes
the last ones, so whoever wants the same bits whatever the memory gives ``slots``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.costs import Costs, measure_costs, predict, tensor_bytes
from fastdigin.engine.decoding import decode_one, loss_gradient
from fastdigin.engine.memory import measure, parse_memory, show_bytes
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion

log = logging.getLogger(__name__)

SLOTS = (1, 2, 4, 8)
"""Numbers of slots that are planned; the most that fit are the fastest."""


@dataclass(frozen=True)
class Plan:
    """``predicted`` is the most bytes alive in an iteration beyond what lived before it.

    It and ``budget`` are None where both numbers were given, or found by running out of memory.
    compiled: whether the steps are (compile_choice.py).
    """

    slots: int
    kept_steps: int
    predicted: int | None = None
    budget: int | None = None
    compiled: bool = False

    def halved(self) -> Plan | None:
        """What to try when memory has run out all the same; None when nothing is left to halve."""
        if self.kept_steps:
            return Plan(self.slots, self.kept_steps // 2, compiled=self.compiled)
        if self.slots == 1:
            return None
        return Plan((self.slots + 1) // 2, 0, compiled=self.compiled)

    def __str__(self) -> str:
        text = f"{self.slots} slots, {self.kept_steps} kept steps{', compiled' * self.compiled}"
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
        self._costs: dict[tuple, Costs] = {}

    @property
    def slots(self) -> int:
        """How many jobs share a batch, at most."""
        if self._slots is None:
            self._slots = self._plan_slots()
        return self._slots

    def _plan_slots(self) -> int:
        """For a usual job: the losses are not known yet, only the decode is."""
        length = self.model.text_length
        loss = self._peak_of(lambda x0: torch.autograd.grad(decode_one(self.model, x0).sum(), x0))
        steps, scale = self.model.usual_steps, self.model.usual_guidance_scale
        costs = self._costs_of(self.model.has_null_branch(scale), length)

        def predicted(slots: int, kept_steps: int) -> int:
            return predict(self.model, costs, slots, kept_steps, steps, loss, 0, length)

        kept_steps, budget = self._kept_choices(steps)[0], self._budget()
        fitting = [slots for slots in SLOTS if predicted(slots, kept_steps) <= budget]
        return max(fitting) if fitting else self._too_small(predicted, 1, kept_steps)[0]

    def plan(self, slots: Sequence[Slot], rows: int = 0) -> Plan:
        """Kept steps for these very jobs; the slots are as many as there are.

        rows: how many the batch will have, if it has more.
        """
        slot, count = slots[0], len(slots)
        settings, length = slot.job.settings, slot.job.conditioning.shape[-2]
        kept_steps = self._kept_choices(settings.steps)
        if not any(each.updates_left for each in slots):
            return Plan(count, 0)  # only evaluated: there is no backward to keep anything for
        if len(kept_steps) == 1 and self._memory == "auto":
            return Plan(count, kept_steps[0])

        loss = self._peak_of(
            lambda x0: loss_gradient(
                slot, decode_one(self.model, x0), x0, 1.0, (slot.job.seed, 0, 0)
            )
        )
        held = max(tensor_bytes(each.job) for each in slots)
        guided = self.model.has_null_branch(settings.guidance_scale)
        costs = self._costs_of(guided, length)

        def predicted(slots: int, kept_steps: int) -> int:
            rows_too = max(slots, rows)
            return predict(
                self.model, costs, rows_too, kept_steps, settings.steps, loss, held, length
            )

        budget = self._budget()
        fitting = [k for k in kept_steps if predicted(count, k) <= budget]
        kept = max(fitting) if fitting else self._too_small(predicted, count, kept_steps[0])[1]
        return Plan(count, kept, predicted(count, kept), budget)

    def _kept_choices(self, steps: int) -> range:
        if self._kept_steps is None:
            return range(steps + 1)
        kept = min(self._kept_steps, steps)
        return range(kept, kept + 1)

    def _too_small(self, predicted, slots: int, kept_steps: int) -> tuple[int, int]:
        """The least, with a warning, for "auto"; an error for a budget that was given."""
        message = (
            f"memory: {show_bytes(self._budget())} do not hold {slots} slot{'s' * (slots > 1)} "
            f"with {kept_steps} kept steps, which take "
            f"{show_bytes(predicted(slots, kept_steps))}: give more memory or fewer slots"
        )
        if self._memory != "auto":
            raise UserError(message)
        log.warning("%s; trying all the same", message)
        return slots, kept_steps

    def _budget(self) -> int:
        return parse_memory(self._memory, self.model.device)

    def _peak_of(self, gradient_of: Callable[[Tensor], object]) -> int:
        """Most bytes alive while one x0 is decoded, judged and reduced to its gradient.

        0 where that fails: it will again when the job's turn comes, which then fails alone.
        """
        place = {"device": self.model.device, "dtype": self.model.state_dtype}
        x0 = torch.zeros(self.model.latent_shape, **place, requires_grad=True)
        try:
            with torch.enable_grad():
                return measure(lambda: gradient_of(x0), self.model.device)[1]
        except Exception as error:
            log.info("the losses could not be measured: %s", error)
            return 0

    def _costs_of(self, guided: bool, text_length: int) -> Costs:
        key = guided, text_length
        if key not in self._costs:
            self._costs[key] = measure_costs(self.model, guided, text_length)
        return self._costs[key]
