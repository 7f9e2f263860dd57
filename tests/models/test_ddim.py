"""The sampler's coefficient table against diffusers' scheduler, step by step."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import multistep_scheduler, normal

from fastdigin.errors import UserError
from fastdigin.models.ddim import ddim_table

KINDS = ("epsilon", "v_prediction")


def make_scheduler(prediction_type="epsilon", **changes):
    """Stable Diffusion 1.x's settings."""
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    return DDIMScheduler(**{**options, **changes})


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50, 333, 999])
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
def test_steps_equal_those_of_diffusers(kind, steps, changes):
    scheduler = make_scheduler(kind, **changes)
    table = ddim_table(scheduler, steps)
    assert scheduler.num_inference_steps is None  # the scheduler is left as it is
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    assert len(table) == steps
    assert torch.equal(table.timesteps, scheduler.timesteps)
    z, output = normal(4, 8, 8), normal(4, 8, 8, seed=1)
    checked = {*range(min(3, steps)), steps // 2, *range(max(steps - 3, 0), steps)}
    for i in sorted(checked):
        expected = scheduler.step(output, scheduler.timesteps[i], z, eta=0.0)
        a, b, c, d = table.step[i]
        torch.testing.assert_close(a * z + b * output, expected.prev_sample, rtol=1e-9, atol=1e-9)
        x0 = expected.pred_original_sample
        torch.testing.assert_close(c * z + d * output, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"final_sigmas_type": "zero"},
        {"lower_order_final": True},
        {"euler_at_final": True, "timestep_spacing": "trailing"},
        {"solver_type": "heun", "use_karras_sigmas": True, "final_sigmas_type": "zero"},
        {"solver_order": 1},
    ],
    ids=str,
)
def test_multistep_solvers_equal_those_of_diffusers(changes, kind, steps):
    """All steps in order, because each looks at the x0 before."""
    scheduler = multistep_scheduler(prediction_type=kind, **changes)
    table = ddim_table(scheduler, steps)
    assert table.step.shape == (steps, 5) and table.initial_scale == scheduler.init_noise_sigma
    scheduler.set_timesteps(steps)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    z = expected = normal(4, 8, 8)
    x0 = torch.full_like(z, torch.nan)
    for i, (a, b, c, d, g) in enumerate(table.step):
        output = normal(4, 8, 8, seed=1 + i)
        expected = scheduler.step(output, scheduler.timesteps[i], expected).prev_sample
        z, x0 = a * z + b * output + (g * x0 if g else 0), c * z + d * output
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    # Else the solver would be of first order everywhere.
    last_is_first_order = scheduler.config.lower_order_final or scheduler.config.euler_at_final
    last_is_first_order |= scheduler.config.final_sigmas_type == "zero"
    second = table.step[1 : steps - last_is_first_order, 4]
    assert (second != 0).all() if scheduler.config.solver_order == 2 else (second == 0).all()


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
    ("scheduler", "steps", "message"),
    [
        (make_scheduler(), 0, "steps must lie in 1..1000, got 0"),
        (make_scheduler(), 1001, "steps must lie in 1..1000, got 1001"),
        (make_scheduler("sample"), 5, "'sample'"),
        (make_scheduler(clip_sample=True), 5, "clip_sample"),
        (make_scheduler(thresholding=True), 5, "thresholding"),
        (multistep_scheduler(solver_order=3), 5, "only 'dpmsolver..' of order 1 or 2"),
        (multistep_scheduler(algorithm_type="sde-dpmsolver++"), 5, "only 'dpmsolver..' of order"),
    ],
)
def test_what_is_refused(scheduler, steps, message):
    with pytest.raises(UserError, match=message):
        ddim_table(scheduler, steps)
