"""What slots and kept steps cost, in bytes and seconds: measured once, then extrapolated.

Activations grow in proportion to the number of rows, so one row tells the bytes of any batch.
Speed does not, so it is timed at growing batches until they stop paying.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastdigin.engine.batch import padded
from fastdigin.engine.job import Job
from fastdigin.engine.memory import measure
from fastdigin.engine.sampler import Step, guided_step, pull_back, record_step
from fastdigin.models.diffusion import LatentDiffusion

SLOTS_TRIED = (1, 2, 4, 8, 16, 32, 64)
WORTHWHILE = 1.05
"""More slots must bring at least this much more speed: they cost memory and a longer tail."""

# A slot's copies of the (T, L, D) text: base, delta, gradient and two moments of Adam, the best
# one so far, and the batch's stacked copy with its gradient; twice, for the null text.
_TEXT_COPIES = 16


@dataclass(frozen=True)
class Costs:
    """What a slot takes, in bytes and seconds, with guidance or without.

    saved: held by one kept step. step: most that is alive while one step is recorded and pulled
    back. forward: seconds of one forward per slot, by number of slots. backward: its seconds over
    those of a forward.
    """

    saved: int
    step: int
    forward: dict[int, float]
    backward: float

    def seconds(self, slots: int, steps: int, kept_steps: int) -> float:
        """Of the U-Net's work in an iteration, per image."""
        return self.forward[slots] * (steps * (1 + self.backward) + (steps - kept_steps))


def predict(
    model: LatentDiffusion, costs: Costs, slots: int, kept_steps: int, steps: int, loss: int,
    held_by_job: int, text_length: int,
) -> int:  # fmt: skip
    """Most bytes alive during an iteration.

    loss: of one image's decode and losses. held_by_job: a job's own tensors. The kept graphs are
    all alive while losses are taken; a step that is recomputed only after they are gone.
    """
    rows = len(padded(range(slots), copies=2))
    text = steps * text_length * model.unet.config.cross_attention_dim * 4
    latents = (steps + 8) * torch.Size(model.latent_shape).numel() * 4
    state = rows * (_TEXT_COPIES * text + latents) + slots * held_by_job
    kept = kept_steps * costs.saved * rows
    recording = (costs.step - costs.saved) * rows if kept_steps else 0
    recomputing = costs.step * rows if kept_steps < steps else 0
    return state + max(kept + max(loss, recording), recomputing)


def measure_costs(model: LatentDiffusion, guided: bool, text_length: int, most: int) -> Costs:
    """Runs and times a step, at up to ``most`` slots as long as more slots are faster."""
    one = _step_inputs(model, 1, guided, text_length)
    saved, _ = measure(lambda: record_step(model, *one), model.device)
    _, step = measure(lambda: _there_and_back(model, one), model.device)
    forward: dict[int, float] = {}
    for slots in SLOTS_TRIED:
        if slots > most:
            break
        forward[slots] = _forward_seconds(model, slots, guided, text_length) / slots
        if slots > 2 and forward[slots] * WORTHWHILE > min(forward.values()) < forward[slots]:
            break
    slots = max(forward)
    inputs = _step_inputs(model, slots, guided, text_length)
    both = _seconds(lambda: _there_and_back(model, inputs), model.device) / slots
    return Costs(saved, step, forward, max(both / forward[slots] - 1, 1.0))


def tensor_bytes(job: Job) -> int:
    """Bytes of the tensors that a job brings: sources of injection and blending, above all."""
    tensors = [job.latents, job.conditioning, job.null_text]
    if job.blending is not None:
        tensors += [job.blending.mask, job.blending.source_latents]
    if job.injection is not None:
        for source in job.injection.layers.values():
            tensors += [source.tensor, source.keys]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _there_and_back(model: LatentDiffusion, inputs) -> tuple[torch.Tensor, ...]:
    graph = record_step(model, *inputs)
    return pull_back(graph, torch.ones_like(graph.z_prev), None)


@torch.no_grad()
def _forward_seconds(model: LatentDiffusion, slots: int, guided: bool, text_length: int) -> float:
    inputs = _step_inputs(model, slots, guided, text_length)
    return _seconds(lambda: guided_step(model, *inputs), model.device)


def _seconds(function: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """The shortest of a few runs, after one that does not count."""
    found = []
    for _ in range(times + 1):
        _synchronise(device)
        start = time.perf_counter()
        function()
        _synchronise(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step_inputs(model: LatentDiffusion, slots: int, guided: bool, text_length: int) -> tuple:
    """(z, cond, null, Step) of some step; what the values are costs nothing."""
    rows = len(padded(range(slots), copies=2 if guided else 1))
    place = {"device": model.device, "dtype": model.state_dtype}
    text = torch.zeros(rows, text_length, model.unet.config.cross_attention_dim, **place)
    step = Step(
        timestep=torch.full((rows,), 500, device=model.device),
        coefficients=torch.ones(rows, 4, **place),
        guidance=torch.ones(rows, **place) if guided else None,
    )
    return torch.zeros(rows, *model.latent_shape, **place), text, text if guided else None, step
