"""The sampler's coefficient table against diffusers' schedulers, step by step."""

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from tiny import SD_NOISE, multistep_scheduler, normal

from fastdigin.errors import UserError
from fastdigin.models.ddim import choose_solver, ddim_table, is_few_step

KINDS = ("epsilon", "v_prediction")


def make_scheduler(prediction_type="epsilon", **changes):
    """Stable Diffusion 1.x's settings."""
    options = {**SD_NOISE, "clip_sample": False, "set_alpha_to_one": False}
    return DDIMScheduler(**{**options, "prediction_type": prediction_type, **changes})


@pytest.mark.parametrize("steps", [1, 2, 4, 13, 20, 50, 333, 999])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"beta_schedule": "linear"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
    ],
    ids=str,
)
def test_steps_of_ddim_equal_those_of_diffusers(kind, steps, changes):
    """diffusers' own step goes down by a fixed number: it is told the distance in the list."""
    scheduler = make_scheduler(kind, **changes)
    table = ddim_table(scheduler, steps)
    assert scheduler.num_inference_steps is None  # the scheduler is left as it is
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    assert len(table) == steps
    assert torch.equal(table.timesteps, scheduler.timesteps)
    gaps = [*(-table.timesteps.diff()).tolist(), 1 + int(table.timesteps[-1])]
    z, output = normal(4, 8, 8), normal(4, 8, 8, seed=1)
    checked = {*range(min(3, steps)), steps // 2, *range(max(steps - 3, 0), steps)}
    for i in sorted(checked):
        scheduler.register_to_config(num_train_timesteps=gaps[i])
        scheduler.num_inference_steps = 1
        expected = scheduler.step(output, scheduler.timesteps[i], z, eta=0.0)
        a, b, c, d = table.step[i]
        torch.testing.assert_close(a * z + b * output, expected.prev_sample, rtol=1e-9, atol=1e-9)
        x0 = expected.pred_original_sample
        torch.testing.assert_close(c * z + d * output, x0, rtol=1e-9, atol=1e-9)


OTHERS = [
    multistep_scheduler(),
    multistep_scheduler(final_sigmas_type="zero"),
    multistep_scheduler(lower_order_final=True),
    multistep_scheduler(euler_at_final=True, timestep_spacing="trailing"),
    multistep_scheduler(solver_type="heun", use_karras_sigmas=True, final_sigmas_type="zero"),
    multistep_scheduler(solver_order=1, timestep_spacing="linspace"),
    EulerDiscreteScheduler(**SD_NOISE),
    EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="trailing"),
    EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="leading", use_karras_sigmas=True),
    EulerAncestralDiscreteScheduler(**SD_NOISE, timestep_spacing="trailing"),
    LCMScheduler(beta_start=0.00085, beta_end=0.012),
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchEulerDiscreteScheduler(shift=1.5, use_karras_sigmas=True),
    FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    EDMEulerScheduler(),  # sigma_data 0.5, as Playground 2.5
    EDMEulerScheduler(sigma_data=1.0, sigma_schedule="exponential"),  # as CosXL
    EDMEulerScheduler(final_sigmas_type="sigma_min"),
    EDMDPMSolverMultistepScheduler(),
    EDMDPMSolverMultistepScheduler(solver_type="heun", euler_at_final=True),
    EDMDPMSolverMultistepScheduler(solver_order=1, sigma_data=1.0),
    TCDScheduler(beta_start=0.00085, beta_end=0.012),
]


def named(scheduler):
    return type(scheduler).__name__.removesuffix("Scheduler")


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", OTHERS, ids=named)
def test_steps_of_others_equal_those_of_diffusers(scheduler, kind, steps):
    """All steps in order, with the same outputs and noise; some look at the x0 before."""
    scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
    assert choose_solver(scheduler, distilled=True) is scheduler
    table = ddim_table(scheduler, steps)
    scheduler.set_timesteps(steps)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    scaled = getattr(scheduler, "scale_model_input", lambda z, t: z)  # Euler's own are larger
    noise = normal(4, 8, 8).float()
    truth = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    z, x0 = table.initial_scale * noise, torch.full_like(noise, torch.nan)
    for i, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(z, scaled(truth, t), rtol=1e-4, atol=1e-4)
        output, seed = normal(4, 8, 8, seed=1 + i).float(), torch.Generator().manual_seed(i)
        drawn = randn_tensor(output.shape, generator=torch.Generator().manual_seed(i))
        options = {} if "DPM" in named(scheduler) else {"generator": seed}
        options |= {"eta": 0.0} if "TCD" in named(scheduler) else {}
        truth = scheduler.step(output, t, truth, **options).prev_sample
        a, b, c, d, g = [*table.step[i].tolist(), 0.0][:5]
        fresh = 0.0 if table.noise is None else float(table.noise[i])
        z, x0 = a * z + b * output + fresh * drawn + (g * x0 if g else 0), c * z + d * output
    torch.testing.assert_close(z, truth, rtol=1e-4, atol=1e-4)  # all of them end without scaling


@pytest.mark.parametrize("steps", [1, 4, 20, 999])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_up_and_a_step_down_cancel(kind, steps):
    """With the same model output; the table documents ``inverse`` as the step run backwards."""
    table = ddim_table(make_scheduler(kind), steps)
    z, output = normal(4, 8, 8), normal(4, 8, 8, seed=1)
    for i in range(steps):
        e, f = table.inverse[i]
        a, b, _, _ = table.step[i]
        up = e * z + f * output
        torch.testing.assert_close(a * up + b * output, z, rtol=1e-9, atol=1e-9)
        down = a * z + b * output
        torch.testing.assert_close(e * down + f * output, z, rtol=1e-9, atol=1e-9)


def test_as_many_steps_as_training_timesteps():
    assert len(ddim_table(make_scheduler(steps_offset=0), 1000)) == 1000
    with pytest.raises(UserError, match="start at timestep 1000 of 0..999: take fewer"):
        ddim_table(make_scheduler(steps_offset=1), 1000)


def test_zero_terminal_snr_stays_finite():
    """Stable Diffusion 2.x variants with v-prediction start from pure noise."""
    scheduler = make_scheduler(
        "v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    table = ddim_table(scheduler, 10)
    assert scheduler.alphas_cumprod[table.timesteps[0]] < 1e-6
    assert table.step.isfinite().all() and table.inverse.isfinite().all()
    assert table.step.abs().max() < 1.01


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [
        ("PNDMScheduler", "DDIMScheduler"),
        ("UniPCMultistepScheduler", "DDIMScheduler"),
        ("HeunDiscreteScheduler", "DDIMScheduler"),
        ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_schedulers_become_a_solver_of_the_same_noise(scheduler, solver, kind):
    theirs = getattr(diffusers, scheduler)(**SD_NOISE, prediction_type=kind)
    ours = choose_solver(theirs)
    assert type(ours).__name__ == solver and not ours.config.get("clip_sample")
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config.prediction_type == kind
    assert ours.config.timestep_spacing == theirs.config.timestep_spacing
    assert len(ddim_table(ours, 13)) == 13


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("FlowMatchHeunDiscreteScheduler", "none of DDIM"),
        ("DDIMInverseScheduler", "is a DDIMInverseScheduler, and none of DDIM"),
        ("IPNDMScheduler", "none of DDIM"),
    ],
)
def test_schedulers_of_another_noise_are_refused(scheduler, message):
    with pytest.raises(UserError, match=message):
        choose_solver(getattr(diffusers, scheduler)())


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_flow_matching_is_not_taken_for_noise(scheduler):
    """Two ways to say it; without them it would be sampled as if it predicted noise."""
    kind = getattr(diffusers, scheduler)
    for options in ({"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}):
        with pytest.raises(UserError, match="put FlowMatchEulerDiscreteScheduler"):
            choose_solver(kind(**options))


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_only_what_says_so_is_distilled(kind):
    trailing = kind(**SD_NOISE, timestep_spacing="trailing")
    assert is_few_step(trailing, distilled=True) and not is_few_step(trailing, distilled=False)
    assert not is_few_step(kind(**SD_NOISE), distilled=True)
    assert all(is_few_step(each(), distilled=False) for each in (LCMScheduler, TCDScheduler))
    assert type(choose_solver(trailing, distilled=False)) is EulerDiscreteScheduler


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (make_scheduler(), 0, "steps must lie in 1..1000, got 0"),
        (make_scheduler(), 1001, "steps must lie in 1..1000, got 1001"),
        (make_scheduler("sample"), 5, "'sample'"),
        (make_scheduler(clip_sample=True), 5, "clip_sample"),
        (make_scheduler(thresholding=True), 5, "thresholding"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 5, "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 5, "invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), 1, "steps 1: .* not finite"),
        (make_scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 5, "pure noise"),
        (multistep_scheduler(solver_order=3), 5, "only 'dpmsolver..' of order 1 or 2"),
        (multistep_scheduler(algorithm_type="sde-dpmsolver++"), 5, "only 'dpmsolver..' of order"),
    ],
)
def test_what_is_refused(scheduler, steps, message):
    with pytest.raises(UserError, match=message):
        ddim_table(scheduler, steps)
