"""The batch: slots that advance together, one iteration at a time.

A slot whose job has finished is refilled from the queue at the next iteration boundary. With the
same number of slots and threads, a result is bit-identical in any slot, beside any neighbours, in
any order: everything but the U-Net runs slot by slot, and the U-Net's batch keeps its size, until
at the end of the queue it shrinks to the jobs that are left, where that changes no bit (widths.py).

Memory runs out all the same, where others use it too: then the iteration is taken again with half
the kept steps, and when there are none, with half the slots at a time. Nothing is lost.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.checks import check_fields
from fastdigin.engine.compile_choice import CompileChoice, work_ahead
from fastdigin.engine.graphs import Graphs
from fastdigin.engine.job import VARIABLES, Job, Result
from fastdigin.engine.judging import Prediction, judge, predictions_of
from fastdigin.engine.memory import is_out_of_memory
from fastdigin.engine.planner import Plan, Planner
from fastdigin.engine.progress import Told, ToldSteps
from fastdigin.engine.queue import Queue, Stage
from fastdigin.engine.sampler import unrolled_backward, unrolled_forward
from fastdigin.engine.slot import Slot
from fastdigin.engine.steps import BatchSteps, whole_blocks
from fastdigin.engine.widths import Widths
from fastdigin.errors import UserError

log = logging.getLogger(__name__)


class Batch:
    """The slots of one queue.

    Jobs in one batch share the number of steps, the length of leaps and whether guidance is on; a
    job that differs waits until the slots have drained. The batch then begins anew, with as many
    slots as there are jobs for.

    ``evaluated`` counts the slots of the latest iteration.
    """

    def __init__(
        self,
        planner: Planner,
        choice: CompileChoice,
        widths: Widths,
        queue: Queue,
        graphs: Graphs | None = None,
    ):
        self.queue, self._widths, self.evaluated = queue, widths, 0
        self.slots: list[Slot] = []
        self.plan: Plan | None = None
        self._planner, self._choice, self._model = planner, choice, planner.model
        self._key: tuple | None = None
        self._graphs, self._width, self._full = graphs, 1, False
        self._on_passes: Callable[[float], None] = lambda _: None

    @property
    def advancing(self) -> int:
        """How many slots hold a job that goes on."""
        return sum(slot.active for slot in self.slots)

    @property
    def busy(self) -> bool:
        """Whether any job is in a slot or waits for one."""
        return self.advancing > 0 or bool(self.queue)

    def refill(self, run_stage: Callable[[Stage], Iterable]) -> list[Result]:
        """Fills the free slots as far as the queue goes; the results of jobs that failed at once.

        run_stage: called for a stage that stands at the head of the queue while a slot is free.
        """
        failed = []
        while self._has_room and (job := self.queue.head(run_stage)) is not None:
            if isinstance(job, Result):
                failed.append(job)
            elif (wrong := _wrong(job)) is not None:
                failed.append(wrong)
            elif self.advancing and self._key_of(job) != self._key:
                break
            else:
                if self._key_of(job) != self._key:
                    self._key, self.slots, self.plan = self._key_of(job), [], None
                taken = self._take(job)
                if taken is None:
                    break
                failed += taken
            self.queue.pop()
        if self.slots and self.plan is None:
            self.plan = self._planned()
            self._width = self.plan.width
            log.info("%s", self.plan)
        return failed

    def iterate(self, advance: Callable[[float], None] = lambda _: None) -> list[Result]:
        """Evaluates the slots once and updates those that go on; what has finished.

        All at once, or the plan's number at a time where memory did not hold them all.

        advance: called with the work that was just done, in iterations of one job.
        """
        slots, began = self._evaluated(), time.perf_counter()
        advancing = [slot for slot in slots if slot.active]
        start, told = 0, Told(advance, self.advancing, self._passes(slots))
        self.evaluated, self._on_passes = len(slots), told.add
        while start < len(slots):
            part = slots[start : start + self.plan.slots]
            gradients, self.plan, again = self.try_gradients(part, self.plan)
            if again:
                continue
            start += len(part)
            for i, slot in enumerate(part):
                if slot.active and slot.updates_left and gradients is not None:
                    with _failing_alone(slot, of_memory=True):
                        slot.update(
                            {
                                name: None if g is None else g[i]
                                for name, g in zip(VARIABLES, gradients, strict=True)
                            }
                        )
        _settle(slots)
        for slot in advancing:
            slot.seconds += (time.perf_counter() - began) / len(advancing)
        told.end()
        finished = [slot for slot in self.slots if not (slot.active or slot.reported)]
        self._full = self._full and not finished
        for slot in finished:
            slot.reported = True
        return [slot.result() for slot in finished]

    def _evaluated(self) -> Sequence[Slot]:
        """The slots that go on; all of them where fewer would change bits, or a graph's shape."""
        active, most = [slot for slot in self.slots if slot.active], self.plan.slots
        device = hardware.of(self._model.device)
        if len(active) == len(self.slots) or self.plan.compiled or device.is_gpu:
            return self.slots
        wide, length = min(most, len(self.slots)), active[0].conditioning.shape[-2]
        narrow = {len(active[start : start + most]) for start in range(0, len(active), most)}
        if all(self._widths.agree(wide, each, self._guided, length) for each in narrow):
            return active
        return self.slots

    def _passes(self, slots: Sequence[Slot]) -> float:
        """Of the U-Net's rows in an iteration, beside those of steps that are kept."""
        goes_on = any(slot.active and slot.updates_left for slot in slots)
        steps = slots[0].job.settings.steps + 2 * len(slots[0].path) * goes_on
        return len(slots) * steps * (2 if self._guided else 1)

    @property
    def _has_room(self) -> bool:
        """Whether a slot is free, or one may be added: until the batch has been planned."""
        if self._full:
            return False
        free = self.advancing < len(self.slots)
        return free or self.plan is None and len(self.slots) < self._planner.slots

    def _take(self, job: Job) -> list[Result] | None:
        """Puts a job into the first free slot; its Result if it fails.

        None where memory will not hold it before another job has left.
        """
        place = next((i for i, slot in enumerate(self.slots) if not slot.active), len(self.slots))
        try:
            self.slots[place : place + 1] = [Slot(job, self._model)]
        except UserError as error:
            log.warning("job %s failed: %s", job.id, error)
            return [Result.failure(job, str(error))]
        except Exception as error:
            if not is_out_of_memory(error):
                log.warning("job %s failed", job.id, exc_info=True)
                return [Result.failure(job, f"{type(error).__name__}: {error}")]
            reason = str(error)
        else:
            return []
        self._full = self.advancing > 0
        if not self._full and self.slots:
            self.slots, self.plan = [], None  # of jobs that have finished
            return self._take(job)
        self._release()
        if self._full:
            log.warning("out of memory with job %s beside %d others", job.id, self.advancing)
            return None
        return [Result.failure(job, f"out of memory even alone: {reason}")]

    def _key_of(self, job: Job) -> tuple:
        """Jobs with equal keys fit into one batch."""
        guided = self._model.has_null_branch(job.settings.guidance_scale)
        return job.settings.steps, job.settings.leap, guided, job.conditioning.shape[-2:-1]

    def _planned(self) -> Plan:
        """How the batch is run."""
        slots = self.slots
        plan = self._planner.plan(slots)
        rows = self._choice.rows(len(slots), self._guided, compiled=True)
        work = work_ahead(slots, plan.kept_steps, rows, self._guided, self.queue.waiting)
        if not self._choice.compiles(work):
            return plan
        if rows > len(slots):
            plan = self._planner.plan(slots, rows)
        return replace(plan, compiled=True)

    @property
    def _guided(self) -> bool:
        return self._key[2]

    def try_gradients(self, part: Sequence[Slot], plan: Plan) -> tuple[tuple | None, Plan, bool]:
        """(``gradients``, plan, False), or out of memory (None, a smaller plan, True).

        With nothing left to make smaller the slot fails.
        """
        try:
            return self.gradients(part, plan), plan, False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler: there the exception would keep the graphs alive.
        self._release()
        smaller = plan.halved()
        if smaller is not None and smaller.compiled and not plan.kept_steps:
            before, after = (
                self._choice.rows(p.slots, self._guided, compiled=True) for p in (plan, smaller)
            )
            smaller = replace(smaller, compiled=after < before)  # there is no smaller graph
        if smaller is None:
            part[0].fail(f"out of memory even alone: {reason}")
            return None, plan, False
        log.warning("out of memory with %s; going on with %s", plan, smaller)
        return None, smaller, True

    def gradients(self, slots: Sequence[Slot], plan: Plan) -> tuple | None:
        """Evaluates the slots; gradients of (z, conditioning, null text), if any slot goes on.

        A slot among them that is not active stands there with its last state, so that shapes stay
        as they are; whatever it computes is dropped.
        """
        guided = self._guided
        width = self._choice.rows(len(slots), guided, plan.compiled)
        rows = whole_blocks(slots, width, copies=2 if guided else 1)
        z = torch.stack([slot.z.detach() for slot in rows])
        if hardware.of(z.device).is_gpu:  # where networks keep this layout, and a copy is a launch
            z = z.contiguous(memory_format=torch.channels_last)
        cond = torch.stack([slot.conditioning for slot in rows])
        null = torch.stack([slot.null_text for slot in rows]) if guided else None
        steps = BatchSteps(self._model, [slot.constants for slot in rows], z.dtype)
        last_steps = min(len(steps), max(slot.job.settings.last_steps for slot in slots))
        goes_on = any(slot.active and slot.updates_left for slot in slots)
        path = max(slots, key=lambda slot: slot.job.settings.last_steps).path
        kept = min(plan.kept_steps, len(path)) if goes_on else 0
        if self._graphs is not None:
            self._graphs.begin()
            self._graphs.copies = max(kept, 1)
        functions = ToldSteps(
            self._choice.of(plan.compiled), lambda passes: self._on_passes(len(slots) * passes)
        )
        run = unrolled_forward(functions, z, cond, null, steps, last_steps, kept, path)

        grad_x0s = self._judged(slots, run.x0s)
        if not any(slot.active and slot.updates_left for slot in slots):
            return None
        return unrolled_backward(
            functions, run.inputs, cond, null, steps, grad_x0s, kept=run.kept, path=path
        )

    def _judged(self, slots: Sequence[Slot], x0s: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the losses for each x0 (B, C, h, w); records the plain images.

        As many images at a time as the plan says, from now on half as many where memory runs out.
        """
        gradients = [torch.zeros_like(x0) for x0 in x0s]
        left = predictions_of(slots, x0s)
        while left:
            part = [each for each in left[: self._width] if each[-1].slot.active]
            try:
                found = self._judged_apart([prediction for *_, prediction in part])
            except Exception as error:
                if self._width == 1 or not is_out_of_memory(error):
                    raise
                found = None
            if found is None:  # outside of the handler, which keeps the graphs alive
                self._release()
                log.warning("out of memory with %d images at a time", self._width)
                self._width //= 2
                continue
            left = left[self._width :]
            for (k, b, _), gradient in zip(part, found, strict=True):
                gradients[k][b] = gradient
        return gradients

    def _release(self) -> None:
        """Gives back what is held for later: graphs are recorded anew, for what fits."""
        device = hardware.of(self._model.device)
        if self._graphs is not None:
            self._graphs.clear()
        device.release()
        if device.advice:
            log.warning("%s", device.advice)

    def _judged_apart(self, predictions: Sequence[Prediction]) -> Sequence[Tensor]:
        """All together; where one of them fails, each by itself."""
        if len(predictions) == 1:
            with _failing_alone(predictions[0].slot):
                return judge(self._model, predictions, self._width, self._graphs)
            return [torch.zeros_like(predictions[0].x0_chw)]
        try:
            return judge(self._model, predictions, self._width, self._graphs) if predictions else []
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.info("%d images failed together; each again by itself", len(predictions))
        return [self._judged_apart([each])[0] for each in predictions]


def _settle(slots: Sequence[Slot]) -> None:
    """Reads the figures of all slots: the only time in an iteration that waits for the device."""
    figures = [slot.figures for slot in slots]
    values = torch.cat(figures).tolist()
    for slot, own in zip(slots, figures, strict=True):
        mine, values = values[: len(own)], values[len(own) :]
        with _failing_alone(slot, of_memory=True):
            slot.settle(mine)


def _wrong(job: Job) -> Result | None:
    """The Result of a job whose fields are nothing that they could be."""
    try:
        check_fields(job)
    except UserError as error:
        log.warning("job %s failed: %s", job.id, error)
        return Result.failure(job, str(error))
    return None


@contextmanager
def _failing_alone(slot: Slot, of_memory: bool = False) -> Iterator[None]:
    """Turns whatever a job's own losses raise into that job's failure.

    of_memory: whether running out of memory fails it too, as nothing could be made smaller.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and not of_memory:
            raise
        log.warning(
            "job %s failed", slot.job.id, exc_info=not isinstance(error, FloatingPointError)
        )
        slot.fail(f"{type(error).__name__}: {error}")
