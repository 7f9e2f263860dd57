"""The sampler as data: one row of affine coefficients per step, for every solver.

All latents have the scale at which the U-Net reads them: z = signal * x0 + noise * eps with
signal^2 + noise^2 = 1. (Euler's schedulers in diffusers keep z * sqrt(sigma^2 + 1) with
sigma = noise / signal.) With model output m (noise or velocity) and fresh noise n, a step is

    x0 = c z + d m          z_prev = a z + b m + s n = signal' x0 + kept eps + s n

where kept^2 + s^2 is the variance of the noise after the step. DDIM (Song et al. 2021, eq. 12 with
sigma = 0) and Euler keep all of their noise; an ancestral step of Euler replaces some of it, a
consistency model (Luo et al. 2023, algorithm 1 of LCM) all of it. A step of DPM-Solver++(2M) (Lu
et al. 2022, arXiv 2211.01095, algorithm 2) looks at the x0 of the step before as well:

    z_prev = a z + b m + g x0_before

So the engine never branches on solver, prediction type or step number, and samples of one batch
may stand at different steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from fastdigin.errors import UserError

Solver = (
    DDIMScheduler
    | DPMSolverMultistepScheduler
    | EulerDiscreteScheduler
    | EulerAncestralDiscreteScheduler
    | LCMScheduler
)


@dataclass(frozen=True)
class DDIMTable:
    """T steps from noise to image.

    timesteps: (T,) descending, the numbers the U-Net is conditioned on: int64, or float32 for
        Euler, whose timesteps may lie between whole numbers.
    step: (T, 4) float64, the columns a, b, c, d above; (T, 5) with g for a multistep solver.
    inverse: (T, 2) float64, the columns of z = e z_prev + f m: the step run backwards with the
        output taken at the lower noise level (DDIM inversion, Dhariwal & Nichol 2021, app. F).
        None where the solver adds noise; of a multistep solver that of its first order.
    noise: (T,) float64, s above; None where the solver adds none.
    levels: (T, 2) float64, signal and noise of the latent that each step reads.
    initial_scale: what standard normal noise is multiplied with to become z_T, as diffusers'
        pipelines do it: 1, or a little less.
    """

    timesteps: Tensor
    step: Tensor
    inverse: Tensor | None
    noise: Tensor | None
    levels: Tensor
    initial_scale: float

    def __len__(self) -> int:
        return len(self.timesteps)


def choose_solver(config: dict) -> Solver:
    """The solver for the contents of a scheduler_config.json.

    Few-step models keep their own. Others get a deterministic solver of the same noise schedule
    and timesteps, so that images can be inverted: Euler for both kinds of Euler, DPM-Solver++ of
    first or second order for itself, DDIM for the rest.
    Raises AttributeError or KeyError for a scheduler that diffusers does not know.
    """
    # Here it gets the defaults of its own class, which are not always those of DDIM.
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    if isinstance(theirs, (DDIMScheduler, EulerDiscreteScheduler)) or is_few_step(theirs):
        return theirs
    if isinstance(theirs, DPMSolverMultistepScheduler) and _is_affine(theirs.config):
        return theirs
    if isinstance(theirs, EulerAncestralDiscreteScheduler):
        return EulerDiscreteScheduler.from_config(theirs.config)
    clips = theirs.config.get("clip_sample", False)  # DDIM's own default is to clip
    return DDIMScheduler.from_config(theirs.config, clip_sample=clips)


def is_few_step(scheduler) -> bool:
    """Whether it is the scheduler of a model distilled to 1 to 4 steps.

    Those of LCM, or Euler from the very last timestep (SD-Turbo, SDXL-Turbo, SDXL-Lightning).
    """
    if isinstance(scheduler, LCMScheduler):
        return True
    euler = isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler))
    return euler and scheduler.config.timestep_spacing == "trailing"


def ddim_table(scheduler: Solver, steps: int) -> DDIMTable:
    """Coefficients of ``steps`` steps of a diffusers scheduler, which is left as it is.

    Raises UserError unless 1 <= steps <= the number of timesteps there are, and for settings that
    are not affine (clipping) or that no Stable Diffusion has.
    """
    config = scheduler.config
    _check(scheduler, steps)
    scheduler = type(scheduler).from_config(config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if int(timesteps.max()) >= config.num_train_timesteps:
        raise UserError(
            f"steps {steps} makes the scheduler start at timestep {int(timesteps.max())} of "
            f"0..{config.num_train_timesteps - 1}: take fewer"
        )
    now, after, kept, fresh, scale = _LEVELS[type(scheduler)](scheduler)

    (signal, noise), zero, one = now, torch.zeros_like(now[0]), torch.ones_like(now[0])
    if config.prediction_type == "epsilon":
        c, d = 1 / signal, -noise / signal  # x0 = c z + d m
        e, f = zero, one  # eps = e z + f m
    else:
        c, d = signal, -noise
        e, f = noise, signal
    if isinstance(scheduler, LCMScheduler):
        skip, out = _consistency_scalings(scheduler, timesteps)
        c, d = skip + out * c, out * d
    step = torch.stack([after[0] * c + kept * e, after[0] * d + kept * f, c, d], dim=1)
    a, b = step[:, :2].unbind(1)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        step = _multistep(scheduler, step, now, after)
    stochastic = bool((fresh > 0).any())
    return DDIMTable(
        timesteps=timesteps,
        step=step,
        inverse=None if stochastic else torch.stack([1 / a, -b / a], dim=1),
        noise=fresh if stochastic else None,
        levels=torch.stack(now, dim=1),
        initial_scale=scale,
    )


def _check(scheduler: Solver, steps: int) -> None:
    config = scheduler.config
    most = config.get("original_inference_steps") or config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"steps must lie in 1..{most}, got {steps}")
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the model predicts {config.prediction_type!r}; only 'epsilon' and 'v_prediction' "
            "are supported"
        )
    if config.get("thresholding") or config.get("clip_sample"):
        raise UserError(
            "the scheduler clips x0 (clip_sample or thresholding), which a latent diffusion model "
            "does not need: set both to false in scheduler_config.json"
        )
    if isinstance(scheduler, DPMSolverMultistepScheduler) and not _is_affine(config):
        raise UserError(
            f"the scheduler is {config.algorithm_type!r} of order {config.solver_order}; of the "
            "multistep solvers only 'dpmsolver++' of order 1 or 2 is supported"
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            f"the scheduler's timestep_type is {config.timestep_type!r}; only 'discrete' is "
            "supported"
        )


# (signal, noise) of the latents, both (T,).
_Levels = tuple[Tensor, Tensor]


def _ddim_levels(scheduler: DDIMScheduler) -> tuple[_Levels, _Levels, Tensor, Tensor, float]:
    """Levels before and after each step, the noise kept and the noise added, and z_T's scale."""
    timesteps, abar = scheduler.timesteps, scheduler.alphas_cumprod.double()
    previous = timesteps - scheduler.config.num_train_timesteps // len(timesteps)
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    now = abar[timesteps]
    after = torch.where(previous >= 0, abar[previous.clamp(min=0)], final)
    noise = (1 - after).sqrt()
    return (
        (now.sqrt(), (1 - now).sqrt()),
        (after.sqrt(), noise),
        noise,
        torch.zeros_like(noise),
        1.0,
    )


def _euler_levels(scheduler, ancestral: bool):
    """As ``_ddim_levels``, from sigma = noise / signal (Karras et al. 2022)."""
    sigma, to = scheduler.sigmas.double()[:-1], scheduler.sigmas.double()[1:]
    now, after = ((1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()) for s in (sigma, to))
    fresh = torch.zeros_like(to)
    if ancestral:
        fresh = after[0] * to * (1 - (to / sigma) ** 2).sqrt()
    kept = (after[1] ** 2 - fresh**2).sqrt()
    scale = float(scheduler.init_noise_sigma) / float((1 + sigma[0] ** 2).sqrt())
    return now, after, kept, fresh, scale


def _is_affine(config) -> bool:
    """Whether DPM-Solver's steps are rows of the table: deterministic, and one x0 before."""
    flows = config.get("use_flow_sigmas", False)
    return config.algorithm_type == "dpmsolver++" and config.solver_order <= 2 and not flows


def _dpm_levels(scheduler: DPMSolverMultistepScheduler):
    """As ``_ddim_levels``: DPM-Solver++ of first order is DDIM."""
    now, after, kept, fresh, _ = _euler_levels(scheduler, ancestral=False)
    return now, after, kept, fresh, 1.0


def _multistep(scheduler, step: Tensor, now: _Levels, after: _Levels) -> Tensor:
    """(T, 5) from the rows of first order: the second-order steps of DPM-Solver++(2M).

    They add slope * (x0 - x0_before) to z_prev. h is the difference of log(signal / noise) over a
    step.
    """
    steps, config = len(step), scheduler.config
    slope = torch.zeros_like(step[:, 0])
    if config.solver_order == 2 and steps > 1:
        ratio = now[0] / now[1]
        h = torch.log(after[0] / after[1]) - torch.log(ratio)
        shrunk = torch.expm1(-h)
        slope = -0.5 * after[0] * shrunk
        if config.solver_type == "heun":
            slope = after[0] * (shrunk / h + 1)
        slope[1:] *= h[1:] / h[:-1]
        first_order_last = config.euler_at_final or config.final_sigmas_type == "zero"
        if first_order_last or (config.lower_order_final and steps < 15):
            slope[-1] = 0
        slope[0] = 0
    c, d = step[:, 2:].unbind(1)
    moved = step[:, :2] + slope[:, None] * torch.stack([c, d], dim=1)
    return torch.cat([moved, step[:, 2:], -slope[:, None]], dim=1)


def _lcm_levels(scheduler: LCMScheduler):
    """As ``_ddim_levels``; the last step ends at the consistency function's own value."""
    now = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    after = torch.cat([now[1:], torch.ones_like(now[:1])])
    levels = [(abar.sqrt(), (1 - abar).sqrt()) for abar in (now, after)]
    return *levels, torch.zeros_like(now), levels[1][1], 1.0


def _consistency_scalings(scheduler: LCMScheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of Song et al. 2023 (consistency models, eq. 5) at each timestep."""
    scaled, data = timesteps.double() * scheduler.config.timestep_scaling, 0.5
    return data**2 / (scaled**2 + data**2), scaled / (scaled**2 + data**2).sqrt()


_LEVELS = {
    DDIMScheduler: _ddim_levels,
    DPMSolverMultistepScheduler: _dpm_levels,
    EulerDiscreteScheduler: partial(_euler_levels, ancestral=False),
    EulerAncestralDiscreteScheduler: partial(_euler_levels, ancestral=True),
    LCMScheduler: _lcm_levels,
}
