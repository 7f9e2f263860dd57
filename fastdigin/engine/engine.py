"""Many latent optimisations at once, in a fixed number of slots of one U-Net batch.

From a photo to its record there are these forms. Each is made once and adds what it names:

1. photo: a file or a tensor of the user's.
2. Request (tasks): its id, its words, its target, all checked. No pixels are kept.
3. Stage (queue.py): Requests that wait for their inversion, then candidates that wait for a Search.
4. Job (job.py): one image's optimisation, complete in itself: latents, texts, losses, settings.
5. Slot (slot.py): the Job's variables, optimiser, history and best image while it runs.
6. Result (job.py): what became of it, on the CPU.
7. Record (results): what the task makes of it, with its pictures; what the user gets and saves.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.configuration import LARGEST, Setting, check_value
from fastdigin.engine.batch import Batch
from fastdigin.engine.checks import check_mode, check_pooled, check_values
from fastdigin.engine.compile_choice import CompileChoice
from fastdigin.engine.compiled import GraphKey
from fastdigin.engine.graphs import Graphs
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.engine.memory import is_out_of_memory
from fastdigin.engine.planner import Plan, Planner
from fastdigin.engine.queue import KINDS, Queue, Stage, checked
from fastdigin.engine.sampler import StepFunctions, UnrolledSampler
from fastdigin.engine.steps import Steps
from fastdigin.engine.widths import Widths
from fastdigin.errors import UserError
from fastdigin.models.ddim import DDIMTable
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import pin_results

log = logging.getLogger(__name__)


class Engine:
    """Optimises Jobs through a frozen latent diffusion model (DiG-IN, section 3.2).

    ``plan`` is that of the latest batch. ``job_iterations`` are those that a job took part in so
    far, ``slot_iterations`` those of all slots that were evaluated.

    Args:
        model: the frozen model.
        memory: how much the engine may use beyond the model itself: "12GiB", a number of bytes, or
            "auto" for most of what is free.
        slots: how many jobs share a U-Net batch; planned from the memory when None. A queue
            shorter than that is run in fewer slots. The batch is filled up to whole blocks of rows
            (``whole_blocks``), so an even number wastes nothing.
        kept_steps: how many steps of an iteration keep their graphs from the forward instead of
            being recomputed; planned when None, for each batch of jobs.
        compile: "on" runs the steps of the diffusion model through torch.compile, "auto" where
            that is expected to save time (compile_choice.py), "off" never. A compiled result
            differs in its last bits, and a compiled batch is filled up to as many rows as ``slots``
            or half of them make, so that there are two shapes. ``sample`` and inversions are
            compiled by "on" alone, for such batches.
        graphs: "auto" has a GPU replay steps, decodes and classifiers (CUDA graphs, graphs.py).

        deterministic: the same bits in every run on a device, at some cost of speed: nothing is
            chosen by timing it, in the whole process (``models.precision.pin_results``). A model on
            a CPU needs an ``attention`` of its own beside it. slots and compile must be chosen.

    Raises:
        UserError: a network of the model is trainable or in training mode, or an argument is
            malformed.

    Example:
        >>> engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"), memory="12GiB")
        >>> results = list(engine.run(jobs))
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        memory: str | int = "auto",
        slots: int | None = None,
        kept_steps: int | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
        graphs: Literal["auto", "off"] = "auto",
        deterministic: bool = False,
    ):
        for name, value, least in (("slots", slots, 1), ("kept_steps", kept_steps, 0)):
            if value is not None:
                check_value(name, value, int, Setting("", least=least, most=LARGEST))
        if deterministic and (slots is None or compile == "auto"):
            raise UserError(
                "deterministic needs slots (--slots N) and compile on or off: what is planned "
                "follows from the memory and the speed of the day"
            )
        if deterministic:
            pin_results()
        _check_frozen(model)
        self.model: LatentDiffusion = model
        self.plan: Plan | None = None
        self._kept_steps = kept_steps or 0
        self.job_iterations = self.slot_iterations = 0
        self._stepping, self._lock = False, threading.Lock()
        self._graphs = Graphs(hardware.of(model.device)) if graphs == "auto" else None
        if not hardware.of(model.device).has_graphs:
            self._graphs = None
        self._planner = Planner(model, memory, slots, kept_steps, self._graphs)
        self._choice = CompileChoice(model, compile, lambda: self.slots, self._graphs)
        self._widths = Widths(model)
        self._batch = self._new_batch(Queue())

    @property
    def slots(self) -> int:
        """How many jobs share a batch, at most."""
        return self._planner.slots

    @property
    def occupancy(self) -> float:
        """Share of the slots, over all iterations so far, that advanced a job; 1 is the best.

        A slot idles when no job is left that fits into its batch, towards the end of a queue, and
        the batch cannot be made smaller: compiled, on a GPU, or where another size would change
        the last bits of the results.
        """
        return self.job_iterations / max(self.slot_iterations, 1)

    @property
    def functions(self) -> StepFunctions:
        """Of the model's steps, for work outside of jobs; compiled where compile is "on"."""
        return self._choice.for_stages

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

        Memory does not grow with ``steps`` but for the latents, unless the engine was given
        ``kept_steps``.

        Args:
            latents: z_T (B, C, h, w).
            conditioning: (B, L, D), or (B, T, L, D) per timestep.
            null_text: likewise; None takes the empty prompt.
            pooled: (B, 2, P), those of prompt and null text, for SDXL.
            noise: (B, T, C, h, w), standard normal, for stochastic solvers; None draws it from
                torch's default generator.
            steps, guidance_scale: None takes the model's usual ones.
            last_steps: K.

        Returns:
            The predicted x0 (B, C, h, w), or with K > 1 the last K of them, (K, B, C, h, w),
            earliest first. Gradients reach latents, conditioning and null_text; differentiating
            twice raises RuntimeError.

        Raises:
            UserError: for shapes that do not fit the model.

        Example:
            >>> x0 = engine.sample(latents, conditioning)
            >>> my_loss(engine.model.decode(x0)).backward()
        """
        _check_frozen(self.model)
        steps = self.model.usual_steps if steps is None else steps
        if guidance_scale is None:
            guidance_scale = self.model.usual_guidance_scale
        Settings(steps=steps, guidance_scale=guidance_scale, last_steps=last_steps)  # raises
        guided = self.model.has_null_branch(guidance_scale)
        given = {"latents": latents, "conditioning": conditioning, "null_text": null_text,
                 "pooled": pooled, "noise": noise}  # fmt: skip
        for name, tensor in given.items():
            if tensor is not None or name in ("latents", "conditioning"):
                check_values(name, tensor)
                given[name] = tensor.to(self.model.device)
        latents, conditioning, null_text, pooled, noise = given.values()
        batch = len(latents)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.model.latent_shape:
            raise UserError(
                f"latents have shape {tuple(latents.shape)}, wanted (B, "
                + ", ".join(map(str, self.model.latent_shape)) + ")"
            )  # fmt: skip
        check_pooled(self.model, pooled, (batch,), "pooled")
        if guided and null_text is None:
            null_text = self.model.encode_prompts([""]).to(latents.dtype).expand(batch, -1, -1)
        guidance = torch.full((batch,), guidance_scale, device=latents.device, dtype=latents.dtype)
        noise = _drawn(noise, self.model.ddim_table(steps), latents)
        width = self.model.text_width
        cond = _with_steps(conditioning, "conditioning", batch, steps, width)
        null = _with_steps(null_text, "null_text", batch, steps, width) if guided else None
        if guided and null.shape[2] != cond.shape[2]:
            raise UserError(
                f"null_text has {null.shape[2]} tokens, the conditioning has {cond.shape[2]}"
            )
        _, x0s = UnrolledSampler.apply(
            self._choice.for_sampling,
            Steps(self.model, steps, guidance, guided, pooled, noise),
            min(last_steps, steps),
            min(self._kept_steps, steps),
            latents,
            cond,
            null,
        )
        return x0s if last_steps > 1 else x0s[-1]

    def submit(self, jobs: Iterable[Job | Stage]) -> None:
        """Appends jobs and stages to the queue that ``step`` works through; from any thread.

        Raises:
            UserError: for anything else among them; nothing is appended then.
        """
        # Outside of the lock, as it may be a generator's work.
        jobs = list(checked(jobs, KINDS, "jobs"))
        with self._lock:
            self._batch.queue.submit(jobs)

    def step(self, on_progress: Callable[[float], None] | None = None) -> list[Result]:
        """Fills free slots from the queue, then advances every job in a slot by one iteration.

        Jobs in one batch share the number of steps and whether guidance is on; a job that differs
        waits until the slots have drained. A job that fails (bad shapes, an exception in a loss, a
        value that is not finite) yields a failed Result and disturbs no other. On a CPU, load the
        model in the thread that calls this: where two threads have computed, OpenMP's sleep between
        any two operations (bench/NOTES.md).

        Args:
            on_progress: called with the work that was just done, in iterations of one job.

        Returns:
            The Results of the jobs that have finished, failed ones included; often none.

        Example:
            >>> engine.submit(jobs)
            >>> while engine.busy:
            ...     for result in engine.step():
            ...         print(result.id, result.history[-1]["total"])
        """
        if self._stepping:
            raise RuntimeError(
                "engine.step() was called by a stage of the step that is under way: a stage "
                "returns its jobs, and may use engine.evaluate() and engine.run()"
            )
        self._stepping = True
        try:
            results = self._step(self._batch, on_progress)
        finally:
            self._stepping = False
        with self._lock:  # or what another thread submits meanwhile would go with the old batch
            if not self._batch.busy:  # the next batch is as wide as its jobs are many
                self._batch = self._new_batch(Queue())
        return results

    @property
    def busy(self) -> bool:
        """Whether a submitted job is in a slot or waits for one."""
        return self._batch.busy

    @property
    def waiting(self) -> int:
        """How many submitted jobs have no slot yet; a stage counts as those that it will become."""
        return self._batch.queue.waiting

    def run(
        self, jobs: Iterable[Job | Stage], on_progress: Callable[[float], None] | None = None
    ) -> Iterator[Result]:
        """Yields a Result per job as it finishes, from a queue of its own.

        Args:
            jobs: a sequence is checked at once; any other iterable is read when a slot is free.
            on_progress: called with the work that was just done, in iterations of one job.

        Raises:
            UserError: for anything but jobs and stages among ``jobs``.
        """
        queue = Queue() if isinstance(jobs, Sequence) else Queue(jobs)
        if isinstance(jobs, Sequence):
            queue.submit(jobs)
        return self._results(self._new_batch(queue), on_progress)

    def evaluate(
        self, jobs: Iterable[Job], on_progress: Callable[[float], None] | None = None
    ) -> list[Result]:
        """Every job's image and unaugmented losses without optimising, in the order given.

        on_progress: called with the number of jobs' work that was just done.
        """
        jobs = [
            replace(job, settings=replace(job.settings, iterations=0))
            for job in checked(jobs, (Job,), "jobs")
        ]
        by_job = {id(result.job): result for result in self.run(jobs, on_progress)}
        return [by_job[id(job)] for job in jobs]

    def _new_batch(self, queue: Queue) -> Batch:
        return Batch(self._planner, self._choice, self._widths, queue, self._graphs)

    def _results(self, batch: Batch, on_progress) -> Iterator[Result]:
        while batch.busy:
            yield from self._step(batch, on_progress)

    def _step(self, batch: Batch, on_progress: Callable[[float], None] | None) -> list[Result]:
        advance = on_progress or (lambda iterations: None)
        check_mode()
        results = batch.refill(lambda stage: self._run_stage(stage, advance))
        advancing = batch.advancing
        if advancing:
            finished = batch.iterate(advance)
            results += finished
            self.job_iterations += advancing
            self.slot_iterations += batch.evaluated
            self.plan = batch.plan
            for result in finished:
                if result.history:  # what a job that ended early will not do
                    advance(result.job.settings.iterations + 1 - len(result.history))
        return results

    def _run_stage(self, stage: Stage, advance: Callable[[float], None]) -> Sequence:
        """What takes the stage's place in the queue."""
        name = type(stage).__name__
        try:
            return list(checked(stage.run(self, advance), (Job, Stage, Result), "a stage's jobs"))
        except Exception as error:
            known, parts, memory = isinstance(error, UserError), (), is_out_of_memory(error)
            if hasattr(stage, "parts"):
                parts = stage.parts(memory)
            if not parts:
                log.warning("%s failed: %s", name, error, exc_info=not known)
                return stage.failed(str(error) if known else f"{type(error).__name__}: {error}")
            log.info("%s of %d jobs failed: %s", name, stage.count, error)
        # Outside of the handler: there the exception would keep what it holds alive.
        if memory:
            if self._graphs is not None:
                self._graphs.clear()
            hardware.of(self.model.device).release()
            log.warning("out of memory in %s of %d jobs; going on in halves", name, stage.count)
        return parts


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


def _drawn(noise: Tensor | None, table: DDIMTable, latents: Tensor) -> Tensor | None:
    """The noise that was given, or else some, (B, T, C, h, w); None where the solver adds none."""
    shape = (len(latents), len(table), *latents.shape[1:])
    if noise is not None and (table.noise is None or tuple(noise.shape) != shape):
        wanted = "none: the model's solver is deterministic" if table.noise is None else str(shape)
        raise UserError(f"noise has shape {tuple(noise.shape)}, wanted {wanted}")
    if table.noise is None:
        return None
    if noise is None:
        return torch.randn(shape, device=latents.device, dtype=latents.dtype)
    return noise.to(latents)


def _with_steps(text: Tensor, name: str, batch: int, steps: int, width: int) -> Tensor:
    """(B, L, D) or (B, T, L, D) to (B, T, L, D)."""
    given = text[:, None].expand(-1, steps, -1, -1) if text.ndim == 3 else text
    if given.ndim != 4 or given.shape[:2] != (batch, steps) or given.shape[-1] != width:
        raise UserError(
            f"{name} has shape {tuple(text.shape)}, wanted (B, L, D) or (B, T, L, D) with "
            f"B = {batch}, T = {steps}, D = {width}"
        )
    return given
