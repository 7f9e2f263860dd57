"""The sampler as data: one row of affine coefficients per step, for every solver.

All latents have the scale at which the U-Net reads them: z = signal * x0 + noise * eps, with
signal^2 + noise^2 = 1. (Euler's schedulers in diffusers keep z * sqrt(sigma^2 + 1) with
sigma = noise / signal.) With model output m (noise or velocity) and fresh noise n, a step is

    x0 = c z + d m          z_prev = a z + b m + s n = signal' x0 + kept eps + s n

where kept^2 + s^2 is the variance of the noise after the step. DDIM (Song et al. 2021, eq. 12 with
sigma = 0) and Euler keep all of their noise; an ancestral step of Euler replaces some of it, a
consistency model (Luo et al. 2023, algorithm 1 of LCM) all of it. A step of DPM-Solver++(2M) (Lu
et al. 2022, arXiv 2211.01095, algorithm 2) looks at the x0 of the step before as well:

    z_prev = a z + b m + g x0_before

EDM's schedulers (Karras et al. 2022, table 1) have signal = c_in = 1 / sqrt(sigma^2 + sigma_data^2)
and noise = sigma c_in; c_skip and c_out make x0 of z and m.

Flow matching (Lipman et al. 2023) has signal + noise = 1 instead, and its output is the velocity
eps - x0: z_prev = z + (noise' - noise) m and x0 = z - noise m.

So the engine never branches on solver, prediction type or step number, and samples of one batch
may stand at different steps.
"""

from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    TCDScheduler,
)
from torch import Tensor

from fastdigin.errors import UserError

_EULER = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)
_EDM = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)
_MULTISTEP = (DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler)
_CONSISTENCY = (LCMScheduler, TCDScheduler)
Solver = SchedulerMixin
"""One that ``choose_solver`` returns."""


@dataclass(frozen=True)
class DDIMTable:
    """T steps from noise to image.

    timesteps: (T,) descending, the numbers the U-Net is conditioned on: int64, or float32 for
        Euler, EDM and flow matching, whose timesteps may lie between whole numbers.
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

    @property
    def is_multistep(self) -> bool:
        return self.step.shape[1] == 5


def choose_solver(theirs: SchedulerMixin, distilled: bool = False) -> Solver:
    """The solver that stands for a scheduler of diffusers.

    Few-step models keep their own. Others get a deterministic solver of the same noise schedule
    and spacing of timesteps, so that images can be inverted: flow matching, DDIM, Euler and EDM's
    Euler themselves, Euler for its ancestral kind, DPM-Solver++ of first or second order for
    itself, DDIM for the rest.

    Args:
        theirs: Any scheduler; it is left as it is.
        distilled: As for ``is_few_step``.

    Raises:
        UserError: None of these has its noise schedule.
    """
    kept = (
        DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
    )  # fmt: skip
    if type(theirs) in kept or is_few_step(theirs, distilled):
        return theirs
    # Without this entry diffusers would take what was not given from DDIM's defaults, not theirs.
    config = {name: v for name, v in theirs.config.items() if name != "_use_default_values"}
    kind = type(theirs).__name__
    flows = config.get("use_flow_sigmas") or str(config.get("prediction_type")).startswith("flow")
    if flows:
        raise UserError(
            f"the scheduler is a {kind} for flow matching: put "
            "FlowMatchEulerDiscreteScheduler(shift=...) in its place, with its flow_shift"
        )
    if isinstance(theirs, _MULTISTEP) and _is_affine(theirs.config):
        return theirs
    if DDIMScheduler in getattr(theirs, "compatibles", ()):
        if isinstance(theirs, EulerAncestralDiscreteScheduler):
            return EulerDiscreteScheduler.from_config(config)
        clips = config.get("clip_sample", False)  # DDIM's own default is to clip
        ours = DDIMScheduler.from_config(config, clip_sample=clips)
        if torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6):
            return ours
    raise UserError(
        f"the scheduler is a {kind}, and none of DDIM, Euler, DPM-Solver++, EDM's, LCM, TCD and "
        "FlowMatchEulerDiscreteScheduler has its noise schedule: take a model of one of them"
    )


def is_few_step(scheduler: SchedulerMixin, distilled: bool) -> bool:
    """Whether it is the scheduler of a model distilled to 1 to 4 steps.

    Those of LCM and TCD are. Euler from the very last timestep is where the model says that it was
    ``distilled`` (SD-Turbo, SDXL-Turbo, SDXL-Lightning): other models use it as well.
    """
    return isinstance(scheduler, _CONSISTENCY) or (distilled and starts_last(scheduler))


def starts_last(scheduler: SchedulerMixin) -> bool:
    """Whether it is Euler from the very last timestep, as distilled models need it."""
    return isinstance(scheduler, _EULER) and scheduler.config.timestep_spacing == "trailing"


def ddim_table(scheduler: Solver, steps: int) -> DDIMTable:
    """Coefficients of ``steps`` steps of a diffusers scheduler, which is left as it is.

    A step ends at the next timestep of the list, also where these are not evenly spaced.
    (diffusers' DDIM goes on by 1000 // steps whatever the list says.) TCD is taken without fresh
    noise, its eta of 0, as diffusers' pipelines do unless they are told otherwise.

    Raises UserError unless 1 <= steps <= the number of timesteps there are, and for settings that
    are not affine (clipping) or that no Stable Diffusion has.
    """
    config, flow = scheduler.config, isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    _check(scheduler, steps)
    scheduler = type(scheduler).from_config(config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if not flow and int(timesteps.max()) >= config.num_train_timesteps:
        raise UserError(
            f"steps {steps} makes the scheduler start at timestep {int(timesteps.max())} of "
            f"0..{config.num_train_timesteps - 1}: take fewer"
        )
    levels = _levels(scheduler)
    signal, noise = levels[:-1].unbind(1)
    signal_after, noise_after = levels[1:].unbind(1)
    fresh = _fresh_noise(scheduler, levels)
    kept = noise_after if fresh is None else (noise_after**2 - fresh**2).sqrt()

    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    if flow:
        c, d = one, -noise  # x0 = c z + d m
        e, f = one, signal  # eps = e z + f m
    elif isinstance(scheduler, _EDM):
        data, sign = config.sigma_data, 1 if config.prediction_type == "epsilon" else -1
        c, d = data**2 * signal, sign * data * noise  # c_skip / c_in, c_out
        e, f = (one - signal * c) / noise, -signal * d / noise
    elif config.prediction_type == "epsilon":
        c, d = 1 / signal, -noise / signal
        e, f = zero, one
    else:
        c, d = signal, -noise
        e, f = noise, signal
    if isinstance(scheduler, LCMScheduler):
        skip, out = _consistency_scalings(scheduler, timesteps)
        c, d = skip + out * c, out * d
    step = torch.stack([signal_after * c + kept * e, signal_after * d + kept * f, c, d], dim=1)
    a, b = step[:, :2].unbind(1)
    if isinstance(scheduler, _MULTISTEP):
        step = _multistep(scheduler, step, levels)
    if not step.isfinite().all():
        raise UserError(
            f"steps {steps}: the scheduler's settings give coefficients that are not finite; take "
            "more steps, or a model that predicts velocity where the last timestep is pure noise"
        )
    return DDIMTable(
        timesteps=timesteps,
        step=step,
        inverse=torch.stack([1 / a, -b / a], dim=1) if fresh is None else None,
        noise=fresh,
        levels=levels[:-1],
        # What diffusers' Euler and EDM multiply with, at the U-Net's scale.
        initial_scale=float(scheduler.init_noise_sigma * signal[0])
        if isinstance(scheduler, (*_EULER, *_EDM))
        else 1.0,
    )


def _check(scheduler: Solver, steps: int) -> None:
    config = scheduler.config
    most = config.get("original_inference_steps") or config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"steps must lie in 1..{most}, got {steps}")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if config.use_dynamic_shifting or config.invert_sigmas:
            raise UserError(
                "the scheduler shifts its noise by the size of the image (use_dynamic_shifting) or "
                "counts it backwards (invert_sigmas): set both to false and give a fixed shift"
            )
        return
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
    if isinstance(scheduler, _MULTISTEP) and not _is_affine(config):
        raise UserError(
            f"the scheduler is {config.algorithm_type!r} of order {config.solver_order}; of the "
            "multistep solvers only 'dpmsolver++' of order 1 or 2 is supported"
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            f"the scheduler's timestep_type is {config.timestep_type!r}; only 'discrete' is "
            "supported"
        )


def _levels(scheduler: Solver) -> Tensor:
    """(T + 1, 2) signal and noise of the latents, from z_T to what the last step makes."""
    if isinstance(scheduler, (DDIMScheduler, *_CONSISTENCY)):
        abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        if isinstance(scheduler, LCMScheduler):
            final = 1.0  # the consistency function's own value
        elif isinstance(scheduler, TCDScheduler):
            final = scheduler.alphas_cumprod[0]
        else:
            final = scheduler.final_alpha_cumprod
        abar = torch.cat([abar, abar.new_tensor([float(final)])])
        return torch.stack([abar.sqrt(), (1 - abar).sqrt()], dim=1)
    sigma = scheduler.sigmas.double()
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return torch.stack([1 - sigma, sigma], dim=1)
    # sigma = noise / signal (Karras et al. 2022).
    if isinstance(scheduler, _EDM):
        scale = (scheduler.config.sigma_data**2 + sigma**2).sqrt()
        scale[-1] = 1  # what the last step makes is read by the decoder
    else:
        scale = (1 + sigma**2).sqrt()
    return torch.stack([1 / scale, sigma / scale], dim=1)


def _fresh_noise(scheduler: Solver, levels: Tensor) -> Tensor | None:
    """(T,) how much new noise each step ends with; None where the solver adds none."""
    after = levels[1:, 1]
    if isinstance(scheduler, LCMScheduler) or scheduler.config.get("stochastic_sampling"):
        fresh = after
    elif isinstance(scheduler, EulerAncestralDiscreteScheduler):
        sigma = levels[:, 1] / levels[:, 0]
        fresh = after * (1 - (sigma[1:] / sigma[:-1]) ** 2).sqrt()
    else:
        return None
    return fresh if bool((fresh > 0).any()) else None  # a single step adds none


def _is_affine(config) -> bool:
    """Whether DPM-Solver's steps are rows of the table: deterministic, and one x0 before."""
    return config.algorithm_type == "dpmsolver++" and config.solver_order <= 2


def _multistep(scheduler, step: Tensor, levels: Tensor) -> Tensor:
    """(T, 5) from the rows of first order: the second-order steps of DPM-Solver++(2M).

    They add slope * (x0 - x0_before) to z_prev. h is the difference of log(signal / noise) over a
    step.
    """
    steps, config = len(step), scheduler.config
    slope = torch.zeros_like(step[:, 0])
    if config.solver_order == 2 and steps > 1:
        h = torch.log(levels[:, 0] / levels[:, 1]).diff()
        shrunk = torch.expm1(-h)
        slope = -0.5 * levels[1:, 0] * shrunk
        if config.solver_type == "heun":
            slope = levels[1:, 0] * (shrunk / h + 1)
        slope[1:] *= h[1:] / h[:-1]
        first_order_last = config.euler_at_final or config.final_sigmas_type == "zero"
        if first_order_last or (config.lower_order_final and steps < 15):
            slope[-1] = 0
        slope[0] = 0
    c, d = step[:, 2:].unbind(1)
    moved = step[:, :2] + slope[:, None] * torch.stack([c, d], dim=1)
    return torch.cat([moved, step[:, 2:], -slope[:, None]], dim=1)


def _consistency_scalings(scheduler: LCMScheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of Song et al. 2023 (consistency models, eq. 5) at each timestep."""
    scaled, data = timesteps.double() * scheduler.config.timestep_scaling, 0.5
    return data**2 / (scaled**2 + data**2), scaled / (scaled**2 + data**2).sqrt()
