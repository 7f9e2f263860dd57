"""Inversion of real images: DDIM inversion, then null-text optimisation, for many at once.

DDIM inversion (Dhariwal & Nichol 2021) gives a noise latent whose unguided sample is the image.
With guidance the sample drifts; null-text optimisation (Mokady et al. 2023, algorithm 1) tunes
the null embedding of each step until the guided step lands on the inverted trajectory again.
Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807) is its fast relative: with the
prompt's own embedding as the null text, guidance cancels and the sample is the unguided one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastdigin.engine.batch import padded
from fastdigin.engine.sampler import Step, guided_step
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion

Method = Literal["null-text", "negative-prompt"]


@dataclass(frozen=True)
class InversionSettings:
    """steps and guidance_scale: those of the sampler that shall reproduce the image.

    null_text_steps: most updates per timestep and image. learning_rate: of Adam; it falls
    linearly to half over the timesteps. An image goes on to its next timestep as soon as the mean
    squared distance to the inverted trajectory is below tolerance * (1 + 2 i) at step i.
    method: "null-text" optimises; "negative-prompt" takes the prompt as null text, without the
    work and without what null_text_steps, learning_rate and tolerance say.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    null_text_steps: int = 10
    learning_rate: float = 0.01
    tolerance: float = 1e-5
    method: Method = "null-text"

    def __post_init__(self) -> None:
        if self.null_text_steps < 0:
            raise UserError(f"null_text_steps must be at least 0, got {self.null_text_steps}")
        if self.method not in get_args(Method):
            raise UserError(
                f"method of inversion must be one of {', '.join(get_args(Method))}, got "
                f"{self.method!r}"
            )

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


@dataclass(frozen=True)
class Inversion:
    """What reproduces one image.

    trajectory: (T + 1, C, h, w), the reconstruction's latent at the input of each step, and the
        last z; trajectory[0] is z_T.
    conditioning: (L, D) of the prompt. null_text: (T, L, D), or None where guidance is off.
    encoded: (C, h, w), the image's own latent, which the reconstruction aims at.
    """

    prompt: str
    trajectory: Tensor
    conditioning: Tensor
    null_text: Tensor | None
    encoded: Tensor


def invert(
    model: LatentDiffusion,
    images: Sequence[Tensor],
    prompts: Sequence[str],
    settings: InversionSettings,
    *,
    batch: int,
    on_step: Callable[[float], None] | None = None,
) -> list[Inversion]:
    """Inverts images (3, H, W) in [0, 1], ``batch`` of them at a time.

    A last batch that is not full is padded, so that an image's inversion does not depend on how
    many others there are. on_step: called with the number of images' worth of work just done.
    """
    inversions = []
    for start in range(0, len(images), batch):
        part = list(zip(images, prompts, strict=True))[start : start + batch]
        rows, words = zip(*padded(part, batch), strict=True)
        inversions += _invert_batch(model, rows, words, settings, len(part), on_step)[: len(part)]
    return inversions


def _invert_batch(model, images, prompts, settings, real, on_step) -> list[Inversion]:
    encoded = torch.stack([model.encode_image(image) for image in images]).to(model.state_dtype)
    cond = model.encode_prompts(prompts).to(model.state_dtype)
    optimised = settings.guided and settings.method == "null-text"
    share = real / (2 if optimised else 1)
    upward = ddim_inversion(model, encoded, cond, settings.steps)
    if on_step is not None:
        on_step(share)
    if optimised:
        trajectory, null = null_text_optimisation(model, upward, cond, settings)
        if on_step is not None:
            on_step(share)
    else:
        trajectory = _unguided_trajectory(model, upward[:, 0], cond, settings.steps)
        null = cond[:, None].repeat(1, settings.steps, 1, 1) if settings.guided else None
    return [
        Inversion(prompt, trajectory[i], cond[i], None if null is None else null[i], encoded[i])
        for i, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def ddim_inversion(
    model: LatentDiffusion, encoded_bchw: Tensor, cond_bld: Tensor, steps: int
) -> Tensor:
    """From clean latents up to noise, unguided: (B, T + 1, C, h, w), z_T first."""
    table = model.ddim_table(steps)
    inverse = table.inverse.to(encoded_bchw)
    z, path = encoded_bchw, [encoded_bchw]
    for i in reversed(range(steps)):
        t = table.timesteps[i].to(z.device).expand(len(z))
        z = inverse[i, 0] * z + inverse[i, 1] * model.predict(z, t, cond_bld)
        path.append(z)
    return torch.stack(path[::-1], dim=1)


@torch.no_grad()
def _unguided_trajectory(model, z, cond, steps) -> Tensor:
    table = model.ddim_table(steps)
    path = [z]
    for i in range(steps):
        row = table.step[i].to(z).expand(len(z), 4)
        t = table.timesteps[i].to(z.device).expand(len(z))
        z, _ = guided_step(model, z, cond, None, Step(t, row, None))
        path.append(z)
    return torch.stack(path, dim=1)


def null_text_optimisation(
    model: LatentDiffusion, upward: Tensor, cond_bld: Tensor, settings: InversionSettings
) -> tuple[Tensor, Tensor]:
    """Guided trajectories (B, T + 1, C, h, w) and null texts (B, T, L, D) that follow ``upward``.

    Timesteps are per sample: an image that has converged at one step goes on to its next while
    its neighbours still work on theirs, and no shape ever changes. A prediction that is close
    enough is accepted as it is, together with the null text that made it.
    """
    batch, steps = len(upward), settings.steps
    table = model.ddim_table(steps)
    timesteps, coefficients = table.timesteps.to(upward.device), table.step.to(upward)
    guidance = settings.guidance_scale
    null = model.encode_prompts([""]).to(upward).expand(batch, -1, -1).clone()
    optimisers = [_Adam(settings.learning_rate) for _ in range(batch)]
    z, trajectory = upward[:, 0].clone(), upward.clone()
    nulls = null[:, None].repeat(1, steps, 1, 1)
    at, tries = [0] * batch, [0] * batch
    cond_output = torch.empty_like(z)

    while any(i < steps for i in at):
        # Samples that are through stay in the batch at their last step; nothing of them is kept.
        now = torch.tensor([min(i, steps - 1) for i in at])
        t, (a, b) = timesteps[now], coefficients[now, :2, None, None, None].unbind(1)
        if any(n == 0 and i < steps for n, i in zip(tries, at, strict=True)):
            with torch.no_grad():
                cond_output = model.predict(z, t, cond_bld)
        variable = null.detach().requires_grad_()
        with torch.enable_grad():
            null_output = model.predict(z, t, variable)
            output = null_output + guidance * (cond_output - null_output)
            z_prev = a * z + b * output
            goal = upward[torch.arange(batch), now + 1]
            losses = (z_prev - goal).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad(losses.sum(), variable)
        distances = losses.tolist()
        for s in range(batch):
            i = at[s]
            if i == steps:
                continue
            close = distances[s] < settings.tolerance * (1 + 2 * i)
            if close or tries[s] >= settings.null_text_steps:
                nulls[s, i], z[s] = null[s], z_prev[s].detach()
                trajectory[s, i + 1] = z[s]
                at[s], tries[s] = i + 1, 0
                optimisers[s] = _Adam(settings.learning_rate * (1 - 0.5 * (i + 1) / steps))
            else:
                null[s] = optimisers[s].update(null[s], gradient[s])
                tries[s] += 1
    return trajectory, nulls


class _Adam:
    """Adam on one tensor that lives inside a batch (torch.optim wants leaves of its own)."""

    def __init__(self, rate: float):
        self.rate, self.count, self.mean, self.square = rate, 0, 0.0, 0.0

    def update(self, x: Tensor, gradient: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean = self.mean / (1 - 0.9**self.count)
        root = (self.square / (1 - 0.999**self.count)).sqrt()
        return x - self.rate * mean / (root + 1e-8)
