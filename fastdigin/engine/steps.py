"""Slots side by side: the constants of each step for a whole batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdigin.engine.job import Blending, Injection, Job, SelfInjection
from fastdigin.engine.sampler import Step
from fastdigin.models.attention import InjectedAttention, InjectedSelfAttention, SourceAttention
from fastdigin.models.diffusion import LatentDiffusion

ROW_BLOCK = 4


def whole_blocks(rows: Sequence, width: int = 1, copies: int = 1) -> list:
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


class Steps(Sequence[Step]):
    """The T steps of a batch of B samples, without edits.

    Args:
        model: whose solver and device it is.
        count: T.
        guidance: (B,), the scales, on the model's device and in the state's dtype.
        guided: whether there is a null branch.
        pooled: (B, 2, P), those of prompt and null text, for models that take them.
        noise: (B, T, C, h, w), standard normal, for stochastic solvers.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        count: int,
        guidance: Tensor,
        guided: bool,
        pooled: Tensor | None = None,
        noise: Tensor | None = None,
    ):
        table = model.ddim_table(count)
        self._batch = len(guidance)
        self._timesteps = table.timesteps.to(guidance.device, non_blocking=True)
        self._coefficients = table.step.to(guidance, non_blocking=True)
        self._guidance = guidance if guided else None
        self._vector = _vector(model, pooled, guidance, guided)
        self._noise_btchw = None
        if noise is not None:
            scale = table.noise.to(noise, non_blocking=True)
            self._noise_btchw = scale[:, None, None, None] * noise

    def __len__(self) -> int:
        return len(self._timesteps)

    def __getitem__(self, i: int) -> Step:
        return Step(
            timestep=self._timesteps[i].expand(self._batch),
            coefficients=self._coefficients[i].expand(self._batch, -1),
            guidance=self._guidance,
            vector=self._vector,
            noise=None if self._noise_btchw is None else self._noise_btchw[:, i],
        )


class BatchSteps(Steps):
    """The T steps of a batch of jobs that share T and whether guidance is on.

    A Step is built when it is asked for: stacked source attention of all steps at once would
    double what the jobs already hold. With jobs as ``on_device`` makes them, no host waits for
    the device.
    """

    def __init__(self, model: LatentDiffusion, jobs: Sequence[Job], dtype: torch.dtype):
        self._jobs = jobs
        self._as_state = {"device": model.device, "dtype": dtype}
        self._as_networks = {"device": model.device, "dtype": model.dtype}
        settings, noise = jobs[0].settings, None
        guidance = _to([job.settings.guidance_scale for job in jobs], self._as_state)
        pooled = None if jobs[0].pooled is None else torch.stack([job.pooled for job in jobs])
        if model.ddim_table(settings.steps).noise is not None:
            noise = [drawn_noise(j, model) if j.noise is None else j.noise for j in jobs]
            noise = _stack(noise, self._as_state)
        guided = model.has_null_branch(settings.guidance_scale)
        super().__init__(model, settings.steps, guidance, guided, pooled, noise)
        self._offsets_btchw = None
        if any(job.offsets is not None for job in jobs):
            self._offsets_btchw = _stack([job.offsets for job in jobs], self._as_state)
        self._weights_tb = self._weights([job.injection for job in jobs])
        edits = [job.self_injection for job in jobs]
        self._self_weights = {
            name: self._weights([x if x is not None and name in x.layers else None for x in edits])
            for name in {name for x in edits if x is not None for name in x.layers}
        }

    def __getitem__(self, i: int) -> Step:
        return replace(
            super().__getitem__(i),
            injected=self._injected(i),
            injected_self=self._injected_self(i),
            blend=self._blend(i),
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
        mapping = _stack([None if x is None else x.mapping for x in active], self._as_networks)
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
        tensor = _stack([None if row is None else row.tensor for row in rows], self._as_networks)
        if next(row for row in rows if row is not None).keys is None:
            return SourceAttention(tensor, None)
        keys = _stack([None if row is None else row.keys for row in rows], self._as_networks)
        return SourceAttention(tensor, keys)

    def _weights(self, edits: Sequence[Injection | SelfInjection | None]) -> Tensor:
        """(T, B), 0 for jobs without the edit."""
        never = (0.0,) * len(self)
        rows = [never if x is None else x.weights for x in edits]
        return _to(list(zip(*rows, strict=True)), self._as_networks)

    def _blend(self, i: int) -> tuple[Tensor, Tensor] | None:
        blendings = [job.blending for job in self._jobs]
        if not any(x is not None and x.weights[i] for x in blendings):
            return None
        weights = [None if x is None else x.weights[i] * x.mask for x in blendings]
        sources = [None if x is None else x.source_latents[i] for x in blendings]
        return _stack(weights, self._as_state)[:, None], _stack(sources, self._as_state)


def on_device(job: Job, model: LatentDiffusion) -> Job:
    """The job with what every iteration reads of it on the model's device, noise drawn.

    Tensors that lie there are not copied, so this costs memory where a job's own are elsewhere.
    """

    def moved(x: Tensor | None) -> Tensor | None:
        # Sources that the device does not hold wait in pinned memory, for one step at a time.
        return x if x is None or x.is_pinned() else x.to(model.device, non_blocking=True)

    def moved_edit(edit: Injection | SelfInjection | Blending | None, *names: str) -> Any:
        if edit is None:
            return None
        changes = {name: moved(getattr(edit, name)) for name in names}
        if not isinstance(edit, Blending):
            changes["layers"] = {
                name: SourceAttention(moved(source.tensor), moved(source.keys))
                for name, source in edit.layers.items()
            }
        return replace(edit, **changes)

    noise = job.noise
    if noise is None and model.ddim_table(job.settings.steps).noise is not None:
        noise = drawn_noise(job, model)
    return replace(
        job,
        injection=moved_edit(job.injection, "mapping"),
        self_injection=moved_edit(job.self_injection),
        blending=moved_edit(job.blending, "mask", "source_latents"),
        noise=moved(noise),
        pooled=moved(job.pooled),
        offsets=moved(job.offsets),
    )


def _vector(
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


def _active(edits: Sequence[Any], i: int) -> list[Any]:
    """The edits that act at step i. Others stand in the batch as None: zeros, and weight 0."""
    return [x if x is not None and x.weights[i] else None for x in edits]


def _stack(rows: Sequence[Tensor | None], like: dict) -> Tensor:
    """Stacks rows of one shape; None stands for zeros."""
    moved = [None if row is None else row.to(**like, non_blocking=True) for row in rows]
    example = next(row for row in moved if row is not None)
    return torch.stack([torch.zeros_like(example) if row is None else row for row in moved])


def _to(rows: Sequence, like: dict) -> Tensor:
    """A tensor of numbers. torch.tensor on the device would wait for it."""
    return torch.tensor(rows, dtype=like["dtype"]).to(like["device"], non_blocking=True)
