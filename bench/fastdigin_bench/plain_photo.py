"""A whole counterfactual of a photo by the plain loop: inversion, search, optimisation.

Shared with the task is what prepares data: reading photos, prompts and their token mapping, masks,
and the jobs with their losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdigin.editing.attention_store import AttentionStore, nearest_layers
from fastdigin.editing.inversion import Inversion, InversionSettings
from fastdigin.editing.masks import attention_mask, latent_mask, soften
from fastdigin.editing.prompts import phrase_tokens
from fastdigin.engine.job import Result
from fastdigin.models.attention import SourceAttention
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.sources import Source, SourcePhoto
from fastdigin_bench.plain_loop import optimise, plain_total
from fastdigin_bench.plain_model import PlainModel


def counterfactual(plain: PlainModel, task: Counterfactuals) -> Result:
    """What would have to change for the classifier to say the target? task: of one photo.

    Every candidate of the schedule search is sampled by itself.
    """
    (request,) = task.requests
    photo = task.check(request).photo
    source = prepare(plain, photo, task.settings.inversion(), max(task.injected))
    jobs = task.candidates(request, source)
    return optimise(plain, min(jobs, key=lambda job: plain_total(plain, job)))


def prepare(
    plain: PlainModel, photo: SourcePhoto, settings: InversionSettings, injected_fraction: float
) -> Source:
    """Inverts one photo and records its attention and its mask."""
    size = plain.model.image_size
    image = photo.image.to(plain.device, plain.dtype)
    inversion = invert(plain, image, photo.prompt, settings)
    record = record_maps(plain, inversion, injected_fraction)
    mask = photo.mask
    if mask is None:
        tokens = phrase_tokens(plain.model, photo.prompt, photo.source)
        mask = soften(attention_mask(record.maps, tokens, size))
    mask = mask.to(image)
    with torch.no_grad():
        reconstruction = plain.decode(inversion.trajectory[-1:])
    small = latent_mask(mask, plain.model.latent_shape[-1])
    return Source(photo, image, inversion, record, reconstruction, mask, small)


def invert(
    plain: PlainModel, image_3hw: Tensor, prompt: str, settings: InversionSettings
) -> Inversion:
    """DDIM inversion, then null-text optimisation (Mokady et al. 2023), of one image."""
    plain.write_maps(False)
    with torch.no_grad():
        posterior = plain.vae.encode(image_3hw[None] * 2 - 1).latent_dist
    encoded = posterior.mean * plain.vae.config.scaling_factor
    cond, empty = (
        plain.model.encode_prompts([text]).to(plain.device, plain.dtype) for text in (prompt, "")
    )
    upward = ddim_inversion(plain, encoded, cond, settings.steps)
    trajectory, nulls = _null_text_optimisation(plain, upward, cond, empty, settings)
    null_text = torch.cat(nulls) if nulls else None
    return Inversion(prompt, torch.cat(trajectory), cond[0], null_text, encoded[0])


@torch.no_grad()
def ddim_inversion(plain: PlainModel, z: Tensor, cond: Tensor, steps: int) -> list[Tensor]:
    """From the clean latent (1, C, h, w) up to noise, unguided: T + 1 latents, z_T first."""
    scheduler, path = plain.scheduler(steps), [z]
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in reversed(scheduler.timesteps):
        # A DDIM step is affine, z_prev = a z + b output, and so can be run backwards.
        a = scheduler.step(zero, int(t), one).prev_sample
        b = scheduler.step(one, int(t), zero).prev_sample
        z = (z - b * plain.predict(z, t, cond)) / a
        path.append(z)
    return path[::-1]


def _null_text_optimisation(
    plain: PlainModel,
    upward: Sequence[Tensor],
    cond: Tensor,
    null: Tensor,
    settings: InversionSettings,
) -> tuple[list[Tensor], list[Tensor]]:
    """(T + 1 latents, T null texts) of the guided trajectory that follows ``upward``.

    A step's null text is optimised until its latent is near enough or its updates are spent; then
    the step is taken with a U-Net call of its own, as the published code does. Without guidance
    there is no null text, and the trajectory is the sampler's.
    """
    scheduler, scale = plain.scheduler(settings.steps), settings.guidance_scale
    z, trajectory, nulls = upward[0], [upward[0]], []
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            cond_output = plain.predict(z, t, cond)
        if scale == 1.0:
            z = scheduler.step(cond_output, int(t), z).prev_sample
            trajectory.append(z)
            continue
        null = null.detach().clone().requires_grad_()
        rate = settings.learning_rate * (1 - 0.5 * i / settings.steps)
        optimiser = torch.optim.Adam([null], lr=rate)
        for _ in range(settings.null_text_steps):
            z_prev = _guided_step(plain, scheduler, t, z, null, cond_output, scale)
            loss = (z_prev - upward[i + 1]).square().mean()
            if loss.item() < settings.tolerance * (1 + 2 * i):
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            z = _guided_step(plain, scheduler, t, z, null, cond_output, scale)
        trajectory.append(z)
        nulls.append(null.detach())
    return trajectory, nulls


def _guided_step(plain, scheduler, t, z, null, cond_output, scale) -> Tensor:
    null_output = plain.predict(z, t, null)
    output = null_output + scale * (cond_output - null_output)
    return scheduler.step(output, int(t), z).prev_sample


@torch.no_grad()
def record_maps(plain: PlainModel, inversion: Inversion, fraction: float) -> AttentionStore:
    """Replays the source's conditional branch and keeps its maps.

    fraction: of the steps whose maps shall be injected.
    """
    plain.write_maps(True)
    steps = len(inversion.trajectory) - 1
    injected, half = sum(i / steps < fraction for i in range(steps)), (steps + 1) // 2
    timesteps = plain.scheduler(steps).timesteps[: max(injected, half)]
    recorded: dict[str, list[Tensor]] = {}

    def keep(layer: str, maps_bhnl: Tensor) -> Tensor:
        recorded.setdefault(layer, []).append(maps_bhnl[0])
        return maps_bhnl

    for z, t in zip(inversion.trajectory, timesteps, strict=False):
        plain.predict(z[None], t, inversion.conditioning[None], keep)
    layers = nearest_layers({layer: maps[0].shape[-2] for layer, maps in recorded.items()})
    maps_nl = torch.stack([m.mean(0) for layer in layers for m in recorded[layer][:half]]).mean(0)
    side = round(len(maps_nl) ** 0.5)
    kept = {
        layer: SourceAttention(torch.stack(maps[:injected]), None)
        for layer, maps in recorded.items()
        if injected
    }
    return AttentionStore(kept, maps_nl.T.unflatten(-1, (side, side)))
