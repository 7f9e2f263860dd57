"""What slots and kept steps cost, in bytes: measured on one slot, then multiplied.

Activations grow in proportion to the number of rows, so one row tells the bytes of any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdigin.engine.job import Job
from fastdigin.engine.memory import measure
from fastdigin.engine.sampler import Step, initial_state, pull_back, record_step
from fastdigin.engine.steps import padded, step_vector
from fastdigin.models.diffusion import LatentDiffusion

COPIES = 8
"""Of a slot's latents and of each of its texts: base, delta, gradient and two moments of Adam, the
best so far, and what the batch stacks with its gradient."""


@dataclass(frozen=True)
class Costs:
    """Bytes of a step a slot: held by a kept one, and alive at most while one is pulled back."""

    saved: int
    step: int


def predict(
    model: LatentDiffusion, costs: Costs, slots: int, kept_steps: int, steps: int, loss: int,
    held_by_job: int, text_length: int,
) -> int:  # fmt: skip
    """Most bytes alive during an iteration.

    loss: of one image's decode and losses. held_by_job: a job's own tensors. The kept graphs are
    all alive while losses are taken; a step that is recomputed only after they are gone.
    """
    rows = len(padded(range(slots), copies=2))
    state = state_bytes(model, slots, steps, text_length) + slots * held_by_job
    kept = kept_steps * costs.saved * rows
    recording = (costs.step - costs.saved) * rows if kept_steps else 0
    recomputing = costs.step * rows if kept_steps < steps else 0
    return state + max(kept + max(loss, recording), recomputing)


def state_bytes(model: LatentDiffusion, slots: int, steps: int, text_length: int) -> int:
    """Of the slots' variables, optimisers and best results, and of a batch's latents.

    The only part of an iteration's memory that grows with the number of steps.
    """
    latent, text = torch.Size(model.latent_shape).numel(), text_length * model.text_width
    return len(padded(range(slots), copies=2)) * slot_state_bytes(latent, text, steps)


def slot_state_bytes(latent: int, text: int, steps: int) -> int:
    """Of one slot, in fp32. latent: numbers in its latents; text: in one text of one timestep."""
    return 4 * ((steps + COPIES) * latent + COPIES * 2 * steps * text)


def measure_costs(model: LatentDiffusion, guided: bool, text_length: int) -> Costs:
    """Runs a step of one slot, twice."""
    inputs = step_inputs(model, 1, guided, text_length)
    saved, _ = measure(lambda: record_step(model, *inputs), model.device)
    _, step = measure(lambda: _there_and_back(model, inputs), model.device)
    return Costs(saved, step)


def tensor_bytes(job: Job) -> int:
    """Bytes of the tensors that a job brings: sources of injection and blending, above all."""
    tensors = [job.latents, job.conditioning, job.null_text, job.pooled, job.noise, job.offsets]
    if job.blending is not None:
        tensors += [job.blending.mask, job.blending.source_latents]
    for injection in (job.injection, job.self_injection):
        for source in injection.layers.values() if injection is not None else ():
            tensors += [source.tensor, source.keys]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _there_and_back(model: LatentDiffusion, inputs) -> tuple[torch.Tensor, ...]:
    graph = record_step(model, *inputs)
    return pull_back(graph, torch.ones_like(graph.z_prev), None)


def step_inputs(model: LatentDiffusion, slots: int, guided: bool, text_length: int) -> tuple:
    """(z, cond, null, Step) of some step; what the values are costs nothing."""
    rows = len(padded(range(slots), copies=2 if guided else 1))
    place = {"device": model.device, "dtype": model.state_dtype}
    text = torch.zeros(rows, text_length, model.unet.config.cross_attention_dim, **place)
    pooled = torch.zeros(rows, 2, model.pooled_width, **place) if model.pooled_width else None
    guidance = torch.ones(rows, **place)
    step = Step(
        timestep=torch.full((rows,), 500, device=model.device),
        coefficients=torch.ones(rows, model.ddim_table(1).step.shape[1], **place),
        guidance=guidance if guided else None,
        vector=step_vector(model, pooled, guidance, guided),
    )
    state = initial_state(torch.zeros(rows, *model.latent_shape, **place), step)
    return state, text, text if guided else None, step
