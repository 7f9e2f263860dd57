"""Gradients that leap over steps: against plain autograd of the same leaps."""

from dataclasses import replace

import pytest
import torch
from tiny import LATENT_SHAPE, assert_near, make_job, multistep_scheduler, normal, with_scheduler

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.engine.leaps import exact_path, leaping_path
from fastdigin.engine.sampler import StepFunctions, unrolled_backward, unrolled_forward
from fastdigin.engine.steps import BatchSteps
from fastdigin.errors import UserError

STEPS, LAST, GUIDANCE = 8, 2, 3.0


def leapt(pipe, job, starts, incoming):
    """Gradients of z_T, texts and null texts (T, L, D), zero where a step was leapt over.

    Latents have their true values and only the derivatives of the leaps.
    """
    pipe.scheduler.set_timesteps(STEPS)
    times = pipe.scheduler.timesteps
    levels = pipe.scheduler.alphas_cumprod.double()[times]
    final = pipe.scheduler.final_alpha_cumprod.double()
    signals = torch.cat([levels, final[None]]).sqrt()
    noises = (1 - signals**2).sqrt()
    z_true, path = job.latents[None], []
    variables = [x.clone().requires_grad_() for x in (job.latents[None], *texts_of(job))]
    z, cond, null = variables

    def x0_and_noise(z, i):
        both = pipe.unet(torch.cat([z, z]), times[i], torch.stack([null[i], cond[i]])).sample
        noise = both[:1] + GUIDANCE * (both[1:] - both[:1])
        return (z - noises[i] * noise) / signals[i], noise

    with torch.no_grad():
        for i in range(STEPS):
            path.append(z_true)
            x0, noise = x0_and_noise(z_true, i)
            z_true = signals[i + 1] * x0 + noises[i + 1] * noise
    x0s = []
    for start, end in zip(starts, [*starts[1:], STEPS], strict=True):
        x0, noise = x0_and_noise(z, start)
        x0s.append(x0)
        z = signals[end] * x0 + noises[end] * noise
        if end < STEPS:
            z = z + (path[end] - z).detach()
    return torch.autograd.grad(x0s[-LAST:], variables, [g[None] for g in incoming])


def texts_of(job):
    return job.conditioning, job.null_text


def job_of(model, seed=0):
    job = make_job(model, seed=seed, steps=STEPS, guidance_scale=GUIDANCE, last_steps=LAST)
    texts = {
        name: getattr(job, name) + 0.2 * normal(STEPS, *job.conditioning.shape, seed=offset)
        for offset, name in ((10, "conditioning"), (20, "null_text"))
    }
    return replace(job, **texts)


@pytest.mark.parametrize(
    ("length", "starts"), [(2, [0, 2, 4, 6, 7]), (4, [0, 4, 6, 7]), (9, [0, 6, 7])]
)
@pytest.mark.parametrize("kept_steps", [0, 2, 3])
def test_equals_plain_autograd_of_the_same_leaps(tiny, length, starts, kept_steps):
    job = job_of(tiny.model)
    steps = BatchSteps(tiny.model, [job], torch.float64)
    path = leaping_path(tiny.model.ddim_table(STEPS), LAST, length)
    assert [leap.start for leap in path] == starts
    z, cond, null = (x[None] for x in (job.latents, *texts_of(job)))
    incoming = [normal(*LATENT_SHAPE, seed=30 + k) for k in range(LAST)]
    functions = StepFunctions(tiny.model)
    run = unrolled_forward(functions, z, cond, null, steps, LAST, kept_steps, path)
    assert len(run.kept) == kept_steps
    found = unrolled_backward(
        functions, run.inputs, cond, null, steps, [g[None] for g in incoming], kept=run.kept,
        path=path,
    )  # fmt: skip
    expected_z, *expected_texts = leapt(tiny.pipe, job, starts, incoming)
    assert_near(found[0], expected_z, 1e-9)
    for actual, expected in zip(found[1:], expected_texts, strict=True):
        for start, end in zip(starts, [*starts[1:], STEPS], strict=True):
            shares = actual[0, start:end]
            assert_near(shares.sum(dim=0), expected[start], 1e-9)
            assert (shares == shares[0]).all()


def test_a_leap_of_one_is_exact(tiny):
    assert leaping_path(tiny.model.ddim_table(STEPS), LAST, 1) == exact_path(STEPS)


def test_near_the_exact_gradient_where_the_networks_were_trained(embedded):
    """Every second step of twenty: the directions of all variables agree within 30 degrees."""
    text, null = embedded.encode_prompts(["a photo of a red boot on grass", ""])
    z = torch.randn(1, *embedded.latent_shape, generator=torch.Generator().manual_seed(0))
    job = make_job(embedded, steps=20, guidance_scale=GUIDANCE)
    job = replace(job, latents=z[0], conditioning=text, null_text=null)
    steps = BatchSteps(embedded, [job], torch.float32)
    texts = [x[None, None].expand(1, 20, -1, -1) for x in (text, null)]
    functions, found = StepFunctions(embedded), []
    for length in (1, 2):
        path = leaping_path(embedded.ddim_table(20), 3, length)
        run = unrolled_forward(functions, z, *texts, steps, 3, len(path), path)
        incoming = [run.last.sign() for _ in range(3)]
        found.append(
            unrolled_backward(functions, run.inputs, *texts, steps, incoming, None, run.kept, path)
        )
    for exact, leaping in zip(*found, strict=True):
        assert torch.cosine_similarity(exact.flatten(), leaping.flatten(), dim=0) > 0.87


def test_jobs_with_other_leaps_do_not_share_a_batch(tiny):
    """Beside each other they give what they give alone."""
    jobs = [make_job(tiny.model, seed=n, steps=STEPS, iterations=2) for n in range(4)]
    jobs = [
        replace(job, id=f"job-{n}", settings=replace(job.settings, leap=(None, 2)[n % 2]))
        for n, job in enumerate(jobs)
    ]
    together = {r.id: r for r in Engine(tiny.model, slots=2, kept_steps=1).run(jobs)}
    for length in (None, 2):
        alike = [job for job in jobs if job.settings.leap == length]
        for alone in Engine(tiny.model, slots=2, kept_steps=1).run(alike):
            assert torch.equal(together[alone.id].image, alone.image)


def test_refused_where_outputs_do_not_tell_later_latents(tiny):
    model = with_scheduler(tiny, multistep_scheduler()).model
    job = make_job(model, steps=STEPS, leap=2)
    (result,) = Engine(model, slots=1).run([job])
    assert result.status == "failed" and "leap 2 needs a solver of first order" in result.error
    with pytest.raises(UserError, match="leap"):
        Settings(leap=0)
