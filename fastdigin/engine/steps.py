"""Slots side by side: the constants of each step for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdigin.engine.job import Injection, Job, SelfInjection
from fastdigin.engine.sampler import Step
from fastdigin.models.attention import InjectedAttention, InjectedSelfAttention, SourceAttention
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
        self._offsets_btchw = None
        if any(job.offsets is not None for job in jobs):
            self._offsets_btchw = _stack([job.offsets for job in jobs], place)
        self._weights_tb = self._weights([job.injection for job in jobs])
        edits = [job.self_injection for job in jobs]
        self._self_weights = {
            name: self._weights([x if x is not None and name in x.layers else None for x in edits])
            for name in {name for x in edits if x is not None for name in x.layers}
        }

    def __len__(self) -> int:
        return len(self._timesteps)

    def __getitem__(self, i: int) -> Step:
        batch = len(self._jobs)
        return Step(
            timestep=self._timesteps[i].expand(batch),
            coefficients=self._coefficients[i].expand(batch, -1),
            guidance=self._guidance,
            injected=self._injected(i),
            injected_self=self._injected_self(i),
            blend=self._blend(i),
            vector=self._vector,
            noise=None if self._noise_btchw is None else self._noise_btchw[:, i],
            offset=None if self._offsets_btchw is None else self._offsets_btchw[:, i],
        )

    def _injected(self, i: int) -> InjectedAttention | None:
        active = _active([job.injection for job in self._jobs], i)
        example = next((x for x in active if x is not None), None)
        if example is None:
            return None
        layers = {
            name: self._sources([None if x is None else x.layers[name].at_step(i) for x in active])
            for name in example.layers
        }
        mapping = _stack([None if x is None else x.mapping for x in active], self._network_place)
        return InjectedAttention(layers, mapping, self._weights_tb[i])

    def _injected_self(self, i: int) -> InjectedSelfAttention | None:
        active = _active([job.self_injection for job in self._jobs], i)
        names = sorted({name for x in active if x is not None for name in x.layers})
        if not names:
            return None
        layers = {}
        for name in names:
            rows = [None if x is None else x.layers.get(name) for x in active]
            layers[name] = self._sources(
                [None if r is None else r.at_step(i, keys_are_shared=False) for r in rows]
            )
        return InjectedSelfAttention(layers, {name: self._self_weights[name][i] for name in names})

    def _sources(self, rows: Sequence[SourceAttention | None]) -> SourceAttention:
        place, example = self._network_place, next(row for row in rows if row is not None)
        tensor = _stack([None if row is None else row.tensor for row in rows], place)
        if example.keys is None:
            return SourceAttention(tensor, None)
        keys = _stack([None if row is None else row.keys for row in rows], place)
        return SourceAttention(tensor, keys)

    def _weights(self, edits: Sequence[Injection | SelfInjection | None]) -> Tensor:
        """(T, B), 0 for jobs without the edit."""
        never = (0.0,) * len(self)
        rows = [never if x is None else x.weights for x in edits]
        return _to(list(zip(*rows, strict=True)), self._network_place)

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

    def placed_layers(edit: Injection | SelfInjection) -> dict[str, SourceAttention]:
        return {
            name: SourceAttention(placed(source.tensor), placed(source.keys))
            for name, source in edit.layers.items()
        }

    injection, blending, noise = job.injection, job.blending, job.noise
    if injection is not None:
        layers = placed_layers(injection)
        injection = replace(injection, layers=layers, mapping=placed(injection.mapping))
    self_injection = job.self_injection
    if self_injection is not None:
        self_injection = replace(self_injection, layers=placed_layers(self_injection))
    if blending is not None:
        sources = placed(blending.source_latents)
        blending = replace(blending, mask=placed(blending.mask), source_latents=sources)
    if noise is None and model.ddim_table(job.settings.steps).noise is not None:
        noise = drawn_noise(job, model)
    return replace(
        job, injection=injection, self_injection=self_injection, blending=blending,
        noise=placed(noise), pooled=placed(job.pooled), offsets=placed(job.offsets),
    )  # fmt: skip


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


def _active(edits: Sequence[Any], i: int) -> list[Any]:
    """The edits that act at step i. Others stand in the batch as None: zeros, and weight 0."""
    return [x if x is not None and x.weights[i] else None for x in edits]


def _stack(rows: Sequence[Tensor | None], place: dict) -> Tensor:
    """Stacks rows of one shape; None stands for zeros."""
    example = next(row for row in rows if row is not None)
    filled = [torch.zeros_like(example) if row is None else row for row in rows]
    return torch.stack(filled).to(**place)


def _to(rows: Sequence, place: dict) -> Tensor:
    """A tensor of numbers. torch.tensor on the device would wait for it."""
    return torch.tensor(rows, dtype=place["dtype"]).to(place["device"], non_blocking=True)
