"""Slots side by side: the constants of each step for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastdigin.engine.job import Job
from fastdigin.engine.sampler import Step
from fastdigin.models.attention import InjectedAttention, SourceAttention
from fastdigin.models.ddim import DDIMTable
from fastdigin.models.diffusion import LatentDiffusion

ROW_BLOCK = 4


def padded(rows: Sequence, width: int = 1, copies: int = 1) -> list:
    """``rows`` with the last repeated, to ``width`` and until the batch keeps its samples apart.

    A matrix product handles rows in blocks (of four, in MKL) and rounds those of a last, partial
    block differently, so that a sample's bits would depend on its place in the batch. Batches of
    whole blocks do not have that, and one sample alone has no other place.
    copies: how often each row stands in the batch (twice with a null branch).
    """
    width = max(width, len(rows))
    while width > 1 and width * copies % ROW_BLOCK:
        width += 1
    return [*rows, *[rows[-1]] * (width - len(rows))]


class BatchSteps(Sequence[Step]):
    """The T steps of a batch of jobs that share T and whether guidance is on.

    A Step is built when it is asked for: stacked source attention of all steps at once would
    double what the jobs already hold. With jobs as ``job_constants`` makes them, no host waits for
    the device.
    """

    def __init__(self, model: LatentDiffusion, jobs: Sequence[Job], dtype: torch.dtype):
        settings = [job.settings for job in jobs]
        table = model.ddim_table(settings[0].steps)
        self._model, self._jobs, self._dtype = model, jobs, dtype
        place = {"device": model.device, "dtype": dtype}
        self._timesteps = table.timesteps.to(model.device, non_blocking=True)
        self._coefficients = table.step.to(**place, non_blocking=True)
        guidance = _to([s.guidance_scale for s in settings], place)
        guided = model.has_null_branch(settings[0].guidance_scale)
        self._guidance = guidance if guided else None
        pooled = None if jobs[0].pooled is None else torch.stack([j.pooled for j in jobs])
        self._vector = step_vector(model, pooled, guidance, guided)
        self._noise_btchw = None
        if table.noise is not None:
            noise = [drawn_noise(j, model) if j.noise is None else j.noise for j in jobs]
            self._noise_btchw = scaled_noise(table, _stack(noise, place))
        never = (0.0,) * len(table)
        weights = [never if j.injection is None else j.injection.weights for j in jobs]
        self._weights_tb = _to(list(zip(*weights, strict=True)), self._network_place)

    def __len__(self) -> int:
        return len(self._timesteps)

    def __getitem__(self, i: int) -> Step:
        batch = len(self._jobs)
        return Step(
            timestep=self._timesteps[i].expand(batch),
            coefficients=self._coefficients[i].expand(batch, 4),
            guidance=self._guidance,
            injected=self._injected(i),
            blend=self._blend(i),
            vector=self._vector,
            noise=None if self._noise_btchw is None else self._noise_btchw[:, i],
        )

    def _injected(self, i: int) -> InjectedAttention | None:
        injections = [job.injection for job in self._jobs]
        weights = [0.0 if x is None else x.weights[i] for x in injections]
        if not any(weights):
            return None
        # A job that does not inject at this step stands in the batch with zeros and weight 0.
        example = next(x for x, w in zip(injections, weights, strict=True) if w)
        layers = {}
        for name, source in example.layers.items():
            rows = [x.layers[name] if w else None for x, w in zip(injections, weights, strict=True)]
            layers[name] = SourceAttention(
                _stack([None if r is None else r.tensor[i] for r in rows], self._network_place),
                None
                if source.keys is None
                else _stack([None if r is None else r.keys for r in rows], self._network_place),
            )
        mappings = [x.mapping if w else None for x, w in zip(injections, weights, strict=True)]
        mapping = _stack(mappings, self._network_place)
        return InjectedAttention(layers, mapping, self._weights_tb[i])

    def _blend(self, i: int) -> tuple[Tensor, Tensor] | None:
        blendings = [job.blending for job in self._jobs]
        if not any(x is not None and x.weights[i] for x in blendings):
            return None
        place = {"device": self._model.device, "dtype": self._dtype}
        weight = _stack([None if x is None else x.weights[i] * x.mask for x in blendings], place)
        source = _stack([None if x is None else x.source_latents[i] for x in blendings], place)
        return weight[:, None], source

    @property
    def _network_place(self) -> dict:
        return {"device": self._model.device, "dtype": self._model.dtype}


def job_constants(job: Job, model: LatentDiffusion) -> Job:
    """The job with what every iteration reads of it on the model's device, noise drawn.

    Tensors that lie there are not copied, so this costs memory where a job's own are elsewhere.
    """

    def placed(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(model.device)

    injection, blending, noise = job.injection, job.blending, job.noise
    if injection is not None:
        layers = {
            name: SourceAttention(placed(source.tensor), placed(source.keys))
            for name, source in injection.layers.items()
        }
        injection = replace(injection, layers=layers, mapping=placed(injection.mapping))
    if blending is not None:
        sources = placed(blending.source_latents)
        blending = replace(blending, mask=placed(blending.mask), source_latents=sources)
    if noise is None and model.ddim_table(job.settings.steps).noise is not None:
        noise = drawn_noise(job, model)
    return replace(
        job, injection=injection, blending=blending, noise=placed(noise), pooled=placed(job.pooled)
    )


def step_vector(
    model: LatentDiffusion, pooled_b2p: Tensor | None, guidance_b: Tensor, guided: bool
) -> Tensor | None:
    """Step.vector from pooled embeddings of (prompt, null text)."""
    branches = (1, 0) if guided else (0,)
    rows = [
        model.vector(None if pooled_b2p is None else pooled_b2p[:, k], guidance_b) for k in branches
    ]
    return None if rows[0] is None else torch.cat(rows)


def drawn_noise(job: Job, model: LatentDiffusion) -> Tensor:
    """(T, C, h, w) on the CPU, what diffusers' pipelines draw from ``job.seed`` after z_T."""
    generator = torch.Generator().manual_seed(job.seed)
    shape = model.latent_shape
    draws = [torch.randn(shape, generator=generator) for _ in range(job.settings.steps + 1)]
    return torch.stack(draws[1:])


def scaled_noise(table: DDIMTable, noise_btchw: Tensor) -> Tensor:
    """What the solver adds after each step."""
    scale = table.noise.to(noise_btchw, non_blocking=True)
    return scale[:, None, None, None] * noise_btchw


def _stack(rows: Sequence[Tensor | None], place: dict) -> Tensor:
    """Stacks rows of one shape; None stands for zeros."""
    example = next(row for row in rows if row is not None)
    filled = [torch.zeros_like(example) if row is None else row for row in rows]
    return torch.stack(filled).to(**place)


def _to(rows: Sequence, place: dict) -> Tensor:
    """A tensor of numbers. torch.tensor on the device would wait for it."""
    return torch.tensor(rows, dtype=place["dtype"]).to(place["device"], non_blocking=True)
