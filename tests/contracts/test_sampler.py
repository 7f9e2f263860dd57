"""The unrolled sampler against plain autograd; against diffusers' pipelines: test_families.py."""

from dataclasses import replace

import pytest
import reference
import torch
from tiny import (
    LATENT_SHAPE,
    assert_near,
    make_blending,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    multistep_scheduler,
    normal,
    reference_editing,
    with_scheduler,
)

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import StepFunctions, unrolled_backward, unrolled_forward
from fastdigin.engine.steps import BatchSteps

STEPS = 4
SOURCE_PROMPT, PROMPT = "a photo of a red sneaker", "a photo of a cat"
FRONT, FADING = (1.0, 1.0, 0.0, 0.0), (1.0, 0.7, 0.25, 0.0)
EDITS = {
    "none": {},
    "injected queries": {"injection": (FRONT, "queries")},
    "injected map": {"injection": (FRONT, "map")},
    "partly injected queries": {"injection": (FADING, "queries")},
    "partly injected map": {"injection": (FADING, "map")},
    "injected self-attention": {"self_injection": (FRONT, "queries", 16)},
    "partly injected self-attention": {"self_injection": (FADING, "queries", 64)},
    "partly injected self-attention's maps": {"self_injection": (FADING, "map", 64)},
    "blended": {"blending": FRONT},
    "partly blended": {"blending": FADING},
    "everything": {
        "injection": (FADING, "queries"), "self_injection": (FRONT, "map", 16), "blending": FRONT,
    },
}  # fmt: skip


def edited_job(model, edit, seed, guidance):
    """A job with a different text at every step, and the source it edits."""
    source = make_source(model, SOURCE_PROMPT, STEPS, seed)
    wanted = EDITS[edit]
    edits = {}
    if "injection" in wanted:
        edits["injection"] = make_injection(model, source, PROMPT, *wanted["injection"])
    if "self_injection" in wanted:
        edits["self_injection"] = make_self_injection(model, source, *wanted["self_injection"])
    if "blending" in wanted:
        edits["blending"] = make_blending(source, wanted["blending"], seed)
    job = make_job(model, seed=seed, prompt=PROMPT, steps=STEPS, guidance_scale=guidance, **edits)
    texts = {
        name: getattr(job, name) + 0.2 * normal(STEPS, *job.conditioning.shape, seed=seed + offset)
        for offset, name in ((10, "conditioning"), (20, "null_text"))
    }
    return replace(job, **texts), source


def probes(shape, count):
    """Arbitrary incoming gradients."""
    return [torch.cos(torch.arange(4 * 64) * (k + 1.0)).view(shape).double() for k in range(count)]


def reference_gradients(pipe, job, source, last_steps):
    """(last z, gradients of z_T, conditioning and null text) of one job by plain autograd."""
    z = job.latents[None].clone().requires_grad_()
    cond = job.conditioning.clone().requires_grad_()
    null = job.null_text.clone().requires_grad_()
    last, x0s = reference.sample(
        pipe.unet,
        pipe.scheduler,
        z,
        [c[None] for c in cond],
        [n[None] for n in null],
        job.settings.guidance_scale,
        **reference_editing(job, source),
    )
    outputs = [*x0s[-last_steps:], last]
    incoming = [p[None] for p in probes(LATENT_SHAPE, len(outputs))]
    wanted = [z, cond, null] if job.settings.guided else [z, cond]
    gradients = torch.autograd.grad(outputs, wanted, incoming)
    return [x.detach() for x in outputs], gradients


@pytest.fixture(scope="module")
def models(tiny, tiny_v):
    """The same networks with each kind of solver."""
    found = {"noise": tiny, "velocity": tiny_v}
    found["multistep"] = with_scheduler(tiny, multistep_scheduler())
    for each in found.values():
        each.pipe.scheduler.set_timesteps(STEPS)
    return found


CASES = [("noise", edit) for edit in EDITS]
CASES += [(solver, e) for solver in ("velocity", "multistep") for e in ("none", "everything")]


@pytest.mark.parametrize(("guidance", "last_steps"), [(3.0, 3), (3.0, 1), (1.0, 3)])
@pytest.mark.parametrize(("solver", "edit"), CASES)
@pytest.mark.parametrize("kept_steps", [0, 3])
def test_gradients_equal_plain_autograd(models, kept_steps, solver, edit, guidance, last_steps):
    """For two jobs side by side, of which only one is edited."""
    either = models[solver]
    pairs = [
        edited_job(either.model, edit, seed=0, guidance=guidance),
        edited_job(either.model, "none", seed=1, guidance=2 * guidance - 1),
    ]
    jobs = [job for job, _ in pairs]
    z = torch.stack([job.latents for job in jobs])
    cond = torch.stack([job.conditioning for job in jobs])
    null = torch.stack([job.null_text for job in jobs]) if guidance != 1 else None
    steps = BatchSteps(either.model, jobs, torch.float64)
    assert steps[0].is_multistep == (solver == "multistep")

    run = unrolled_forward(
        StepFunctions(either.model), z, cond, null, steps, last_steps, kept_steps
    )
    assert len(run.kept) == kept_steps
    outputs = [*run.x0s, run.last]
    incoming = [p.expand(2, *LATENT_SHAPE) for p in probes(LATENT_SHAPE, len(outputs))]
    gradients = unrolled_backward(
        StepFunctions(either.model),
        run.inputs,
        cond,
        null,
        steps,
        incoming[:-1],
        incoming[-1],
        run.kept,
    )
    assert len(run.x0s) == last_steps
    assert (gradients[2] is None) == (guidance == 1)
    for i, (job, source) in enumerate(pairs):
        expected_outputs, expected = reference_gradients(either.pipe, job, source, last_steps)
        for actual, wanted in zip(outputs, expected_outputs, strict=True):
            assert_near(actual[i : i + 1], wanted, 1e-9)
        assert_near(gradients[0][i : i + 1], expected[0], 1e-9)
        assert_near(gradients[1][i], expected[1], 1e-9)
        if guidance != 1:
            assert_near(gradients[2][i], expected[2], 1e-9)


def test_edits_change_the_sample(tiny):
    """Or the test above would compare nothing."""

    def last(edit):
        job, _ = edited_job(tiny.model, edit, seed=0, guidance=3.0)
        steps = BatchSteps(tiny.model, [job], torch.float64)
        texts = job.conditioning[None], job.null_text[None]
        return unrolled_forward(StepFunctions(tiny.model), job.latents[None], *texts, steps, 1).last

    results = {edit: last(edit) for edit in EDITS}
    torch.testing.assert_close(results["injected queries"], results["injected map"])
    torch.testing.assert_close(results["partly injected queries"], results["partly injected map"])
    partly = "partly injected self-attention"
    torch.testing.assert_close(results[partly], results[f"{partly}'s maps"])
    for edit in set(EDITS) - {"none"}:
        assert (results[edit] - results["none"]).abs().max() > 1e-2, edit


@pytest.mark.parametrize("solver", ["noise", "velocity", "multistep"])
@pytest.mark.parametrize("per_timestep", [False, True])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("last_steps", [1, 3])
def test_sample_is_differentiable(models, solver, per_timestep, guidance, last_steps):
    """The public function, for two different samples, against the reference one by one."""
    either = models[solver]
    model, shape = either.model, (2, STEPS) if per_timestep else (2,)
    text = model.encode_prompts([PROMPT, ""])
    z = normal(2, *LATENT_SHAPE).requires_grad_()
    cond = (text[0] + 0.2 * normal(*shape, *text.shape[1:], seed=1)).requires_grad_()
    null = (text[1] + 0.2 * normal(*shape, *text.shape[1:], seed=2)).requires_grad_()
    x0s = Engine(model).sample(
        z, cond, null, steps=STEPS, guidance_scale=guidance, last_steps=last_steps
    )
    assert x0s.shape == ((last_steps, 2) if last_steps > 1 else (2,)) + LATENT_SHAPE
    probe = normal(*x0s.shape, seed=3)
    wanted = [z, cond, null] if guidance != 1 else [z, cond]
    gradients = torch.autograd.grad((x0s * probe).sum(), wanted)

    rows = []
    for b in range(2):
        steps = [(slice(b, b + 1), i) if per_timestep else slice(b, b + 1) for i in range(STEPS)]
        _, expected = reference.sample(
            either.pipe.unet, either.pipe.scheduler, z[b : b + 1],
            [cond[s] for s in steps], [null[s] for s in steps], guidance,
        )  # fmt: skip
        rows.append(torch.stack(expected[-last_steps:]))
    expected = torch.cat(rows, dim=1) if last_steps > 1 else torch.cat(rows, dim=1)[0]
    assert_near(x0s, expected, 1e-9)
    for actual, truth in zip(
        gradients, torch.autograd.grad((expected * probe).sum(), wanted), strict=True
    ):
        assert_near(actual, truth, 1e-9)


def test_null_text_defaults_to_the_empty_prompt(tiny):
    engine, z = Engine(tiny.model), normal(2, *LATENT_SHAPE)
    cond = tiny.model.encode_prompts([PROMPT, "a bag"])
    empty = tiny.model.encode_prompts(["", ""])
    default = engine.sample(z, cond, steps=STEPS)
    assert torch.equal(default, engine.sample(z, cond, empty, steps=STEPS))


def test_fewer_steps_than_x0s_asked_for(tiny):
    z, cond = normal(1, *LATENT_SHAPE), tiny.model.encode_prompts([PROMPT])
    assert Engine(tiny.model).sample(z, cond, steps=2, last_steps=3).shape[0] == 2


@pytest.mark.parametrize("power", [1, 2])
def test_differentiating_twice_is_refused(tiny, power):
    z = normal(1, *LATENT_SHAPE).requires_grad_()
    x0 = Engine(tiny.model).sample(z, tiny.model.encode_prompts([PROMPT]), steps=2)
    (gradient,) = torch.autograd.grad((x0**power).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), z, retain_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_kept_steps_save_calls_and_change_no_bit(tiny):
    """T calls forward and one for each step that was not kept; again after retain_graph."""
    text = tiny.model.encode_prompts([PROMPT])
    calls = []
    handle = tiny.model.unet.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for kept in (0, 1, STEPS, 50):
        z, cond = normal(1, *LATENT_SHAPE).requires_grad_(), text.clone().requires_grad_()
        x0 = Engine(tiny.model, kept_steps=kept).sample(z, cond, steps=STEPS)
        calls.clear()
        gradients = torch.autograd.grad(x0.sin().sum(), (z, cond), retain_graph=True)
        assert len(calls) == STEPS - min(kept, STEPS)
        again = torch.autograd.grad(x0.sin().sum(), (z, cond))
        assert len(calls) == 2 * STEPS - min(kept, STEPS)
        assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
        found[kept] = gradients
    handle.remove()
    for gradients in found.values():
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0], strict=True))
