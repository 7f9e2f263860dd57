"""The yardstick of ``fastdigin bench throughput``: DiG-IN as its published code does it.

A loop to be read, and timed, beside the engine, which it agrees with and of which it uses nothing
but Job and Result:

- one image at a time, in fp32;
- the guided DDIM loop in diffusers' steps, differentiated by autograd as it stands; the U-Net
  checkpoints its blocks, so memory grows with the number of steps;
- one graph for the last K images and their losses;
- prompt-to-prompt on attention maps that are written out, in all steps of the loop;
- one more decode for the plain image of the history;
- a last iteration whose graph nobody uses.

Where the published code is slower still, this loop is kind to it: self-attention stays fused, and
the source's attention comes from the Job instead of a source image run along in the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.job import Candidate, Injection, Job, Result, Settings
from fastdigin.models.attention import SourceAttention
from fastdigin_bench.gradients import Gradients
from fastdigin_bench.plain_model import MapEdit, PlainModel

KNOWN_SETTINGS = (
    "steps", "guidance_scale", "iterations", "last_steps", "learning_rate", "latent_lr_factor",
)  # fmt: skip
UNKNOWN = ("self_injection", "noise", "offsets", "pooled")
"""Of a Job, what no counterfactual of the bench has."""


def optimise(plain: PlainModel, job: Job) -> Result:
    """Optimises one job by Adam on z_T and the text deltas of every step (DiG-IN, eq. 3).

    Raises ValueError for a Job or Settings that the loop does not know. Whatever fails, raises.
    """
    started, settings = time.perf_counter(), job.settings
    state = _start(plain, job)
    rates = {name: settings.learning_rate for name in state.variables}
    rates["latents"] *= settings.latent_lr_factor
    optimiser = torch.optim.Adam(
        [{"params": [state.variables[name]], "lr": rate} for name, rate in rates.items()]
    )
    z = state.variables["latents"]
    norm = z.detach().norm()
    history: list[dict[str, float]] = []
    best, initial_image = {}, None
    for iteration in range(settings.iterations + 1):
        x0s = _sample(plain, job, state)[-settings.last_steps :]
        loss = _loss(plain, job, x0s, iteration)
        with torch.no_grad():
            image = plain.decode(x0s[-1])
            history.append(_plain_row(job, Candidate(image, x0s[-1][0])))
        if initial_image is None:
            initial_image = image.cpu()
        if not best or history[-1]["total"] < history[best["best_iteration"]]["total"]:
            best = {"best_iteration": iteration, "image": image.cpu(), **state.values()}
        if iteration == settings.iterations:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            z.mul_(norm / z.norm())
    return Result(
        job, "done", None, initial_image=initial_image, history=tuple(history),
        seconds=time.perf_counter() - started, **best,
    )  # fmt: skip


def first_gradients(plain: PlainModel, job: Job) -> Gradients:
    """The gradients of iteration 0, without an optimisation."""
    state = _start(plain, job)
    x0s = _sample(plain, job, state)[-job.settings.last_steps :]
    gradients = torch.autograd.grad(_loss(plain, job, x0s, 0), list(state.variables.values()))
    return dict(zip(state.variables, gradients, strict=True))


@torch.no_grad()
def plain_total(plain: PlainModel, job: Job) -> float:
    """The plain loss of a job's image before any optimisation: what the schedule search asks."""
    x0 = _sample(plain, job, _start(plain, job))[-1]
    return _plain_row(job, Candidate(plain.decode(x0), x0[0]))["total"]


@dataclass(frozen=True)
class _State:
    """variables: what Adam changes: "latents" (C, h, w) and text deltas (T, L, D), from zero.

    bases: the texts that the deltas are added to, (T, L, D).
    """

    variables: dict[str, Tensor]
    bases: dict[str, Tensor]

    def texts(self) -> dict[str, Tensor]:
        return {name: base + self.variables[name] for name, base in self.bases.items()}

    def values(self) -> dict[str, Tensor]:
        """Latents and texts as they are now, on the CPU, by the names of Result."""
        now = {"latents": self.variables["latents"], **self.texts()}
        return {name: x.detach().to("cpu", copy=True) for name, x in now.items()}


def _start(plain: PlainModel, job: Job) -> _State:
    _check(job)
    plain.write_maps(job.injection is not None)
    place = {"device": plain.device, "dtype": plain.dtype}
    texts = {"conditioning": job.conditioning}
    if job.settings.guided:
        texts["null_text"] = job.null_text
    bases = {
        name: text.detach().to(**place).expand(job.settings.steps, -1, -1)
        for name, text in texts.items()
    }
    variables = {"latents": job.latents.detach().to(**place, copy=True)}
    variables |= {name: torch.zeros_like(base) for name, base in bases.items()}
    for variable in variables.values():
        variable.requires_grad_()
    return _State(variables, bases)


def _check(job: Job) -> None:
    given = {name: getattr(job.settings, name) for name in KNOWN_SETTINGS}
    if job.settings != Settings(**given):
        raise ValueError(
            f"the plain loop knows no Settings but {', '.join(KNOWN_SETTINGS)}: {job.settings}"
        )
    if any(getattr(job, name) is not None for name in UNKNOWN):
        raise ValueError(f"the plain loop knows no Job with {' or '.join(UNKNOWN)}")


def _sample(plain: PlainModel, job: Job, state: _State) -> list[Tensor]:
    """The guided loop: every predicted x0 (1, C, h, w), the last one last."""
    scheduler, scale = plain.scheduler(job.settings.steps), job.settings.guidance_scale
    z, texts, x0s = state.variables["latents"][None], state.texts(), []
    for i, t in enumerate(scheduler.timesteps):
        if job.blending is not None:
            keep = job.blending.weights[i] * job.blending.mask.to(z)
            z = keep * job.blending.source_latents[i].to(z) + (1 - keep) * z
        edit = _injection(job.injection, i, z) if job.injection is not None else None
        if job.settings.guided:
            pair = torch.stack([texts["null_text"][i], texts["conditioning"][i]])
            null, cond = plain.predict(torch.cat([z, z]), t, pair, edit).chunk(2)
            output = null + scale * (cond - null)
        else:
            output = plain.predict(z, t, texts["conditioning"][i][None], edit)
        z, x0 = scheduler.step(output, int(t), z, return_dict=False)
        x0s.append(x0)
    return x0s


def _injection(injection: Injection, i: int, like: Tensor) -> MapEdit | None:
    """Step i's edit: w A_src M^T + (1 - w) A for the conditional sample, the batch's last."""
    weight = injection.weights[i]
    if not weight:
        return None
    mapping = injection.mapping.to(like)

    def edit(layer: str, maps_bhnl: Tensor) -> Tensor:
        injected = _source_maps(injection.layers[layer], i).to(like) @ mapping.T
        own = weight * injected + (1 - weight) * maps_bhnl[-1]
        return torch.cat([maps_bhnl[:-1], own[None]])

    return edit


def _source_maps(source: SourceAttention, i: int) -> Tensor:
    """A_src (H, N, Ls) of step i."""
    queries_or_map = source.tensor[i]
    if source.keys is None:
        return queries_or_map
    scale = queries_or_map.shape[-1] ** -0.5
    return torch.softmax(queries_or_map @ source.keys.transpose(-1, -2) * scale, dim=-1)


def _loss(plain: PlainModel, job: Job, x0s: Sequence[Tensor], iteration: int) -> Tensor:
    """The weighted loss of the last K x0, decoded together with their graph."""
    weights = [2 * (k + 1) / (len(x0s) * (len(x0s) + 1)) for k in range(len(x0s))]
    return sum(
        weight * _total(job, Candidate(plain.decode(x0), x0[0], (job.seed, iteration, k)))
        for k, (weight, x0) in enumerate(zip(weights, x0s, strict=True))
    )


def _total(job: Job, candidate: Candidate) -> Tensor:
    return sum(loss.weight * loss(candidate) for loss in job.losses)


def _plain_row(job: Job, candidate: Candidate) -> dict[str, float]:
    """One row of the history, as the engine writes it."""
    terms = {loss.name: float(loss(candidate)) for loss in job.losses}
    total = sum(loss.weight * terms[loss.name] for loss in job.losses)
    monitors = {name: float(read(candidate.image)) for name, read in job.monitors.items()}
    return {"total": total, **terms, **monitors}
