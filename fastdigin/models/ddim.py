"""The DDIM sampler as data: one row of affine coefficients per step.

With model output m (noise or velocity), every deterministic DDIM step (Song et al. 2021, eq. 12
with sigma = 0) is affine in the latent and the output:

    z_prev = a z + b m          x0 = c z + d m

so the engine never branches on the prediction type or the step number, and samples of one batch
may stand at different steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from fastdigin.errors import UserError


@dataclass(frozen=True)
class DDIMTable:
    """T steps from noise to image.

    timesteps: (T,) int64, descending, the numbers the U-Net is conditioned on.
    step: (T, 4) float64, the columns a, b, c, d above.
    inverse: (T, 2) float64, the columns of z = e z_prev + f m: the step run backwards with the
        output taken at the lower noise level (DDIM inversion, Dhariwal & Nichol 2021, app. F).
    """

    timesteps: Tensor
    step: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim_table(scheduler: DDIMScheduler, steps: int) -> DDIMTable:
    """Coefficients of ``steps`` steps of a diffusers scheduler's noise schedule.

    Raises UserError unless 1 <= steps <= the number of training timesteps, and for prediction
    types other than ``epsilon`` and ``v_prediction``.
    """
    config = scheduler.config
    if not 1 <= steps <= config.num_train_timesteps:
        raise UserError(f"steps must lie in 1..{config.num_train_timesteps}, got {steps}")
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the model predicts {config.prediction_type!r}; only 'epsilon' and 'v_prediction' "
            "are supported"
        )
    if config.thresholding or config.clip_sample:
        raise UserError(
            "the scheduler clips x0 (clip_sample or thresholding), which a latent diffusion model "
            "does not need: set both to false in scheduler_config.json"
        )
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if int(timesteps.max()) >= config.num_train_timesteps:
        raise UserError(
            f"steps {steps} makes the scheduler start at timestep {int(timesteps.max())} of "
            f"0..{config.num_train_timesteps - 1}: take fewer"
        )
    previous = timesteps - config.num_train_timesteps // steps
    abar = scheduler.alphas_cumprod.double()
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    now = abar[timesteps]
    after = torch.where(previous >= 0, abar[previous.clamp(min=0)], final)
    signal, noise = now.sqrt(), (1 - now).sqrt()
    signal_prev, noise_prev = after.sqrt(), (1 - after).sqrt()

    if config.prediction_type == "epsilon":
        c, d = 1 / signal, -noise / signal  # x0 = c z + d m
        e, f = torch.zeros_like(now), torch.ones_like(now)  # eps = e z + f m
    else:
        c, d = signal, -noise
        e, f = noise, signal
    step = torch.stack(
        [signal_prev * c + noise_prev * e, signal_prev * d + noise_prev * f, c, d], dim=1
    )
    a, b = step[:, :2].unbind(1)
    inverse = torch.stack([1 / a, -b / a], dim=1)
    return DDIMTable(timesteps, step, inverse)
