"""What slots and kept steps cost, in bytes: measured on one slot, then multiplied.

Activations grow in proportion to the number of rows, so one row tells the bytes of any batch.
"""

import math
from dataclasses import dataclass

import torch

from fastdigin import hardware
from fastdigin.engine.job import Job
from fastdigin.engine.sampler import StepFunctions, initial_state, latents_of
from fastdigin.engine.steps import Steps, whole_blocks
from fastdigin.hardware import measure
from fastdigin.models.diffusion import LatentDiffusion

COPIES = 8
"""Of a slot's latents and of each of its texts: base, delta, gradient and two moments of Adam, the
best so far, and what the batch stacks with its gradient."""


@dataclass(frozen=True)
class StepCosts:
    """Bytes of a step for one row. saved: held by a kept step. peak: most alive until its vjp."""

    saved: int
    peak: int


@dataclass(frozen=True)
class Costs:
    """Bytes of the jobs of a batch.

    steps: those that are differentiated. step: of one row. state: of one row between steps. loss:
    of one image's decode and losses. job: of a job's own tensors. recorded: whether graphs replay
    them (graphs.py).
    """

    steps: int
    step: StepCosts
    state: int
    loss: int
    job: int = 0
    recorded: bool = False

    def peak(self, slots: int, kept_steps: int, width: int = 1) -> int:
        """Most bytes alive during an iteration of so many slots, ``width`` judged at a time.

        The kept graphs are all alive while losses are taken; a step that is recomputed only after
        they are gone. What was recorded keeps its memory: kept steps, decoders and classifiers.
        """
        rows = len(whole_blocks(range(slots), copies=2))
        kept = kept_steps * self.step.saved * rows
        making_graphs = (self.step.peak - self.step.saved) * rows if kept_steps else 0
        recomputing = self.step.peak * rows if kept_steps < self.steps else 0
        held = rows * self.state + slots * self.job
        losses = self.loss * width
        if self.recorded:
            return held + losses + kept + max(making_graphs, recomputing)
        return held + max(kept + max(losses, making_graphs), recomputing)


def slot_state_bytes(latent: int, text: int, steps: int, per_step: int = 1) -> int:
    """What a slot holds between steps, in fp32: the only part that grows with their number.

    Args:
        latent: numbers in its latents.
        text: numbers in one text of one timestep.
        steps: T.
        per_step: how many latents the loop keeps of each step.
    """
    return 4 * ((per_step * steps + COPIES) * latent + COPIES * 2 * steps * text)


def state_bytes(model: LatentDiffusion, steps: int, text_length: int) -> int:
    """``slot_state_bytes`` of a model.

    A multistep solver's state is two latents; noise is there as it was drawn and as it is added.
    """
    table = model.ddim_table(steps)
    per_step = (2 if table.is_multistep else 1) + (0 if table.noise is None else 2)
    latent, text = math.prod(model.latent_shape), text_length * model.text_width
    return slot_state_bytes(latent, text, steps, per_step)


def measure_step(model: LatentDiffusion, guided: bool, text_length: int) -> StepCosts:
    """Runs a step of one slot, twice."""
    functions, inputs = StepFunctions(model), step_inputs(model, 1, guided, text_length)
    incoming = torch.ones_like(inputs[0]), None
    saved, _ = measure(lambda: functions.forward_with_graph(*inputs), model.device)
    _, peak = measure(lambda: functions.joint(*inputs, *incoming), model.device)
    return StepCosts(saved, peak)


def job_bytes(job: Job) -> int:
    """Bytes of the tensors that a job brings: sources of injection and blending, above all.

    Its noise counts as state; what stays in the host's memory does not count.
    """
    tensors = [job.latents, job.conditioning, job.null_text, job.pooled, job.offsets]
    if job.blending is not None:
        tensors += [job.blending.mask, job.blending.source_latents]
    for injection in (job.injection, job.self_injection):
        for source in injection.layers.values() if injection is not None else ():
            tensors += [source.tensor, source.keys]
    return sum(t.nbytes for t in tensors if t is not None and not t.is_pinned())


def step_inputs(model: LatentDiffusion, slots: int, guided: bool, text_length: int) -> tuple:
    """(state, cond, null, Step) of some step; what the values are costs nothing."""
    rows = len(whole_blocks(range(slots), copies=2 if guided else 1))
    as_state = {"device": model.device, "dtype": model.state_dtype}
    text = torch.zeros(rows, text_length, model.text_width, **as_state)
    pooled = torch.zeros(rows, 2, model.pooled_width, **as_state) if model.pooled_width else None
    (step,) = Steps(model, 1, torch.ones(rows, **as_state), guided, pooled)
    state = initial_state(torch.zeros(rows, *model.latent_shape, **as_state), step)
    return state, text, text if guided else None, step


def step_seconds(functions: StepFunctions, inputs: tuple, kept: bool) -> float:
    """How long a step takes there and back. inputs: as ``step_inputs`` makes them."""
    state, *_, step = inputs
    incoming = torch.ones_like(state), torch.ones_like(latents_of(state, step))
    clock = hardware.of(state.device)
    start = clock.seconds()
    if kept:
        functions.vjp(functions.forward_with_graph(*inputs), *incoming)
    else:
        functions.joint(*inputs, *incoming)
    return clock.seconds() - start
