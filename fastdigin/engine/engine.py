"""Many latent optimisations at once, in a fixed number of slots of one U-Net batch.

A slot whose job has finished is refilled at the next iteration boundary. With the same number of
slots and threads, a result is bit-identical in any slot, beside any neighbours, in any order:
everything but the U-Net runs slot by slot, and the U-Net's batch never changes its size.

Memory runs out all the same, where others use it too: then the iteration is taken again with half
the kept steps, and when there are none, with half the slots at a time. Nothing is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import length_hint
from typing import Literal

import torch
from torch import Tensor

from fastdigin.engine.batch import BatchSteps, padded, scaled_noise, step_vector
from fastdigin.engine.checks import check_pooled
from fastdigin.engine.compile_choice import CompileChoice, work_ahead
from fastdigin.engine.compiled import GraphKey
from fastdigin.engine.decoding import decode_one, loss_gradient
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.engine.memory import is_out_of_memory, release
from fastdigin.engine.planner import Plan, Planner
from fastdigin.engine.sampler import (
    Step,
    StepFunctions,
    UnrolledSampler,
    unrolled_backward,
    unrolled_forward,
)
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError
from fastdigin.models.ddim import DDIMTable
from fastdigin.models.diffusion import LatentDiffusion

log = logging.getLogger(__name__)


class Engine:
    """Optimises Jobs through a frozen latent diffusion model.

    memory: how much the engine may use beyond the model itself: "12GiB", a number of bytes, or
        "auto" for most of what is free.
    slots: how many jobs share a U-Net batch; planned from the memory when None. A queue shorter
        than that is run in fewer slots. The batch is filled up to whole blocks of rows
        (``padded``), so an even number wastes nothing.
    kept_steps: how many steps of an iteration keep their graphs from the forward instead of being
        recomputed; planned when None, for each batch of jobs.
    compile: "on" runs the steps of the diffusion model through torch.compile, "auto" where that is
        expected to save time (compile_choice.py), "off" never. A compiled result differs in its
        last bits, and a compiled batch is filled up to as many rows as ``slots`` or half of them
        make, so that there are two shapes. ``sample`` and inversions are compiled by "on"
        alone, for such batches.
    ``plan`` is that of the latest batch. Raises UserError if a network of the model is trainable
    or in training mode, or if an argument is malformed.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        memory: str | int = "auto",
        slots: int | None = None,
        kept_steps: int | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
    ):
        for name, value, least in (("slots", slots, 1), ("kept_steps", kept_steps, 0)):
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        _check_frozen(model)
        self.model: LatentDiffusion = model
        self.plan: Plan | None = None
        self._kept_steps = kept_steps or 0
        self._advanced = self._places = 0
        self._planner = Planner(model, memory, slots, kept_steps)
        self._choice = CompileChoice(model, compile, lambda: self.slots)

    @property
    def slots(self) -> int:
        """How many jobs share a batch, at most."""
        return self._planner.slots

    @property
    def occupancy(self) -> float:
        """Share of the slots, over all iterations so far, that advanced a job; 1 is the best.

        A slot idles when no job is left that fits into its batch: towards the end of a queue. The
        batch is not made smaller then: another size would change the last bits of the results.
        """
        return self._advanced / max(self._places, 1)

    @property
    def functions(self) -> StepFunctions:
        """Of the model's steps, for work outside of jobs; compiled where compile is "on"."""
        return self._choice.for_sampling

    @property
    def graphs(self) -> dict[GraphKey, int]:
        """How many graphs were compiled, for each of what they are for; 1 if all is well."""
        return self._choice.graphs

    @property
    def recompiles(self) -> int:
        """How many graphs were compiled beyond one for each of what they are for; 0 is right."""
        return sum(count - 1 for count in self.graphs.values())

    def sample(
        self,
        latents: Tensor,
        conditioning: Tensor,
        null_text: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        last_steps: int = 1,
    ) -> Tensor:
        """Samples images' latents, differentiably (once): bring your own loss.

        latents: (B, C, h, w). conditioning, null_text: (B, L, D), or (B, T, L, D) per timestep;
        null_text defaults to the empty prompt. pooled: (B, 2, P), those of prompt and null text,
        for SDXL. noise: (B, T, C, h, w), what a stochastic solver adds after each step; None draws
        it from torch's default generator. steps and guidance_scale: None takes the model's usual
        ones. Returns the predicted x0 (B, C, h, w), or with
        ``last_steps=K`` the last K of them, (K, B, C, h, w), earliest first. Gradients reach
        latents, conditioning and null_text; memory does not grow with ``steps`` but for the
        latents, unless the engine was given ``kept_steps``. Differentiating twice raises
        RuntimeError.
        """
        _check_frozen(self.model)
        steps = self.model.usual_steps if steps is None else steps
        if guidance_scale is None:
            guidance_scale = self.model.usual_guidance_scale
        Settings(steps=steps, guidance_scale=guidance_scale, last_steps=last_steps)  # raises
        guided = self.model.has_null_branch(guidance_scale)
        batch = len(latents)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.model.latent_shape:
            raise UserError(
                f"latents have shape {tuple(latents.shape)}, wanted (B, "
                + ", ".join(map(str, self.model.latent_shape)) + ")"
            )  # fmt: skip
        check_pooled(self.model, pooled, (batch,), "pooled")
        if guided and null_text is None:
            null_text = self.model.encode_prompts([""]).to(latents.dtype).expand(batch, -1, -1)
        table = self.model.ddim_table(steps)
        place = {"device": latents.device, "dtype": latents.dtype}
        coefficients = table.step.to(**place)
        guidance = torch.full((batch,), guidance_scale, **place)
        vector = step_vector(self.model, pooled, guidance, guided)
        added = _sample_noise(table, noise, latents)
        constants = [
            Step(
                timestep=table.timesteps[i].to(latents.device).expand(batch),
                coefficients=coefficients[i].expand(batch, -1),
                guidance=guidance if guided else None,
                vector=vector,
                noise=None if added is None else added[:, i],
            )
            for i in range(steps)
        ]
        cond = _with_steps(conditioning, "conditioning", batch, steps)
        null = _with_steps(null_text, "null_text", batch, steps) if guided else None
        _, x0s = UnrolledSampler.apply(
            self.functions,
            constants,
            min(last_steps, steps),
            min(self._kept_steps, steps),
            latents,
            cond,
            null,
        )
        return x0s if last_steps > 1 else x0s[-1]

    def evaluate(self, jobs: Iterable[Job]) -> list[Result]:
        """Every job's image and plain losses without optimising, in the order given."""
        jobs = [replace(job, settings=replace(job.settings, iterations=0)) for job in jobs]
        by_job = {id(result.job): result for result in self.run(jobs)}
        return [by_job[id(job)] for job in jobs]

    def run(
        self,
        jobs: Iterable[Job],
        on_iteration: Callable[[int], None] | None = None,
        *,
        total: int | None = None,
    ) -> Iterator[Result]:
        """Yields a Result per job as it finishes. ``jobs`` is consumed lazily.

        Jobs in one batch share the number of steps and whether guidance is on; a job that differs
        waits until the slots have drained. A job that fails (bad shapes, an exception in a loss, a
        value that is not finite) yields a failed Result and disturbs no other.
        on_iteration: called after each iteration with the number of jobs that were advanced.
        total: how many jobs there are, if ``jobs`` does not tell; for compile="auto" alone.
        """
        queue = _Queue(jobs, total)
        while (first := queue.peek()) is not None:
            key = self._batch_key(first)
            slots: list[Slot] = []
            while len(slots) < self.slots and self._batch_key(queue.peek()) == key:
                yield from self._fill(slots, len(slots), queue)
            if slots:
                plan = self._plan(slots, queue.left)
                log.info("%s", plan)
            while any(slot.active for slot in slots):
                advanced = sum(slot.active for slot in slots)
                self._advanced += advanced
                self._places += len(slots)
                # The jobs of a task are made by runs of their own, inside this one: the plan is
                # this run's, and self.plan only tells of it.
                self.plan = plan = yield from self._iterate(slots, plan)
                if on_iteration is not None:
                    on_iteration(advanced)
                for i in range(len(slots)):
                    while not slots[i].active and self._batch_key(queue.peek()) == key:
                        yield from self._fill(slots, i, queue)

    def _plan(self, slots: Sequence[Slot], jobs_left: int) -> Plan:
        """How the batch is run. jobs_left: how many others are known to follow."""
        plan = self._planner.plan(slots)
        rows = self._choice.rows(len(slots), self._guided(slots))
        work = work_ahead(slots, plan.kept_steps, rows, self._guided(slots), jobs_left)
        if not self._choice.compiles(work):
            return plan
        if rows > len(slots):
            plan = self._planner.plan(slots, rows)
        return replace(plan, compiled=True)

    def _batch_key(self, job: Job | None) -> tuple | None:
        """Jobs with equal keys fit into one batch."""
        if job is None:
            return None
        guided = self.model.has_null_branch(job.settings.guidance_scale)
        return job.settings.steps, guided, job.conditioning.shape[-2:-1]

    def _guided(self, slots: Sequence[Slot]) -> bool:
        return self.model.has_null_branch(slots[0].job.settings.guidance_scale)

    def _fill(self, slots: list[Slot], i: int, queue: _Queue) -> Iterator[Result]:
        """Puts the queue's next job into slot i (or behind the last); yields if it fails."""
        job = queue.pop()
        try:
            slots[i : i + 1] = [Slot(job, self.model)]
        except UserError as error:
            log.warning("job %s failed: %s", job.id, error)
            yield Result(job, "failed", str(error), None, None, (), None, 0.0)

    def _iterate(self, slots: Sequence[Slot], plan: Plan) -> Generator[Result, None, Plan]:
        """Evaluates every slot once and updates those that go on; the plan to go on with.

        All slots at once, or the plan's number at a time where memory did not hold them all.
        """
        names = ("latents", "conditioning", "null_text")
        start = 0
        while start < len(slots):
            part = slots[start : start + plan.slots]
            gradients, plan, again = self._try_gradients(part, plan)
            if again:
                continue
            start += len(part)
            for i, slot in enumerate(part):
                if slot.active and slot.updates_left and gradients is not None:
                    with _failing_alone(slot):
                        slot.update(
                            {
                                name: None if g is None else g[i]
                                for name, g in zip(names, gradients, strict=True)
                            }
                        )
        _settle(slots)
        for slot in slots:
            if not slot.active and not slot.reported:
                slot.reported = True
                yield slot.result()
        return plan

    def _try_gradients(self, part: Sequence[Slot], plan: Plan) -> tuple[tuple | None, Plan, bool]:
        """(``_gradients``, plan, False), or out of memory (None, a smaller plan, True).

        With nothing left to make smaller the slot fails.
        """
        try:
            return self._gradients(part, plan), plan, False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler: there the exception would keep the graphs alive.
        release(self.model.device)
        smaller = plan.halved()
        if smaller is not None and smaller.compiled and not plan.kept_steps:
            guided = self._guided(part)
            before, after = (self._choice.rows(p.slots, guided) for p in (plan, smaller))
            smaller = replace(smaller, compiled=after < before)  # there is no smaller graph
        if smaller is None:
            part[0].fail(f"out of memory even alone: {reason}")
            return None, plan, False
        log.warning("out of memory with %s; going on with %s", plan, smaller)
        return None, smaller, True

    def _gradients(self, slots: Sequence[Slot], plan: Plan) -> tuple | None:
        """Evaluates the slots; gradients of (z, conditioning, null text), if any slot goes on.

        A slot that is not active keeps its place with its last state, so that shapes stay as
        they are; whatever it computes is dropped.
        """
        guided = self._guided(slots)
        width = self._choice.rows(len(slots), guided) if plan.compiled else 1
        rows = padded(slots, width, copies=2 if guided else 1)
        z = torch.stack([slot.z.detach() for slot in rows])
        cond = torch.stack([slot.conditioning for slot in rows])
        null = torch.stack([slot.null_text for slot in rows]) if guided else None
        steps = BatchSteps(self.model, [slot.constants for slot in rows], z.dtype)
        last_steps = min(len(steps), max(slot.job.settings.last_steps for slot in slots))
        goes_on = any(slot.active and slot.updates_left for slot in slots)
        kept = min(plan.kept_steps, len(steps)) if goes_on else 0
        functions = self._choice.of(plan.compiled)
        run = unrolled_forward(functions, z, cond, null, steps, last_steps, kept)

        grad_x0s = [torch.zeros_like(x0) for x0 in run.x0s]
        for i, slot in enumerate(slots):
            if slot.active:
                x0s = [x0[i] for x0 in run.x0s]
                with _failing_alone(slot):
                    for grad_x0, grad in zip(grad_x0s, self._losses(slot, x0s), strict=True):
                        grad_x0[i] = grad
        if not any(slot.active and slot.updates_left for slot in slots):
            return None
        return unrolled_backward(functions, run.inputs, cond, null, steps, grad_x0s, kept=run.kept)

    def _losses(self, slot: Slot, x0s: Sequence[Tensor]) -> list[Tensor]:
        """Records the plain image of the last x0; returns the gradient for each x0.

        Each x0 is decoded, judged and reduced to its gradient before the next, one slot at a
        time: memory is that of one decode, and no other job can change a bit or break this one.
        One decode of the last x0 serves its loss and the history.
        """
        settings = slot.job.settings
        count = min(settings.last_steps, len(x0s))
        weights = [2 * (k + 1) / (count * (count + 1)) for k in range(count)]
        gradients = [torch.zeros_like(x0) for x0 in x0s[: len(x0s) - count]]
        for k, (weight, x0) in enumerate(zip(weights, x0s[-count:], strict=True)):
            last = k == count - 1
            if not last and not slot.updates_left:
                gradients.append(torch.zeros_like(x0))
                continue
            with torch.set_grad_enabled(slot.updates_left):
                x0 = x0.detach().requires_grad_(slot.updates_left)
                decoded = decode_one(self.model, x0)
            if last:
                slot.record(decoded.detach(), x0.detach())
                if not slot.updates_left:
                    return [torch.zeros_like(x) for x in x0s]
            key = slot.job.seed, slot.iteration, k
            gradients.append(loss_gradient(slot, decoded, x0, weight, key))
        return gradients


def _settle(slots: Sequence[Slot]) -> None:
    """Reads the figures of all slots: the only time in an iteration that waits for the device."""
    figures = [slot.figures for slot in slots]
    values = torch.cat(figures).tolist()
    for slot, own in zip(slots, figures, strict=True):
        mine, values = values[: len(own)], values[len(own) :]
        with _failing_alone(slot):
            slot.settle(mine)


@contextmanager
def _failing_alone(slot: Slot) -> Iterator[None]:
    """Turns whatever a job's own losses raise into that job's failure."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.warning(
            "job %s failed", slot.job.id, exc_info=not isinstance(error, FloatingPointError)
        )
        slot.fail(f"{type(error).__name__}: {error}")


class _Queue:
    """Jobs in order, with a look at the next one."""

    def __init__(self, jobs: Iterable[Job], total: int | None = None):
        self._left = length_hint(jobs) if total is None else total
        self._jobs, self._next = iter(jobs), None

    @property
    def left(self) -> int:
        """How many jobs are known to follow."""
        return max(self._left, 0)

    def peek(self) -> Job | None:
        if self._next is None:
            self._next = next(self._jobs, None)
        return self._next

    def pop(self) -> Job:
        job, self._next = self.peek(), None
        self._left -= 1
        return job


def _check_frozen(model: LatentDiffusion) -> None:
    for network in model.networks:
        trainable = next((n for n, p in network.named_parameters() if p.requires_grad), None)
        if trainable is not None:
            raise UserError(
                f"the model's {type(network).__name__} has trainable weights ({trainable}), whose "
                "gradients the engine does not compute: call .requires_grad_(False) on it"
            )
        if network.training:
            raise UserError(
                f"the model's {type(network).__name__} is in training mode: call .eval() on it"
            )


def _sample_noise(table: DDIMTable, noise: Tensor | None, latents: Tensor) -> Tensor | None:
    """What the solver adds, (B, T, C, h, w); None where it is deterministic."""
    shape = (len(latents), len(table), *latents.shape[1:])
    if noise is not None and (table.noise is None or tuple(noise.shape) != shape):
        wanted = "none: the model's solver is deterministic" if table.noise is None else str(shape)
        raise UserError(f"noise has shape {tuple(noise.shape)}, wanted {wanted}")
    if table.noise is None:
        return None
    if noise is None:
        noise = torch.randn(shape, device=latents.device, dtype=latents.dtype)
    return scaled_noise(table, noise.to(latents))


def _with_steps(text: Tensor, name: str, batch: int, steps: int) -> Tensor:
    """(B, L, D) or (B, T, L, D) to (B, T, L, D)."""
    if text.ndim == 3:
        text = text[:, None].expand(-1, steps, -1, -1)
    if text.ndim != 4 or len(text) != batch or text.shape[1] != steps:
        raise UserError(
            f"{name} has shape {tuple(text.shape)}, wanted (B, L, D) or (B, T, L, D) with "
            f"B = {batch}, T = {steps}"
        )
    return text
