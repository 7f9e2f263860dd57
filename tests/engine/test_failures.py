"""A job that fails does so alone, with a reason, and the others end as if it had not been there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    IMAGE_SHAPE,
    make_blending,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    uniform,
)

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Blending, EarlyStop, Injection, Settings
from fastdigin.errors import UserError
from fastdigin.objectives import Distance

STEPS = 4
FRONT = (1.0, 1.0, 0.0, 0.0)


class Failing:
    """Distance to an image, until evaluation ``at``; then whatever ``how`` makes of it."""

    name, weight = "failing", 1.0

    def __init__(self, how, at=0, plain=True):
        self.how, self.at, self.plain, self.calls = how, at, plain, 0
        self.distance = Distance(uniform(*IMAGE_SHAPE))

    def __call__(self, candidate):
        loss = self.distance(candidate)
        if (candidate.key is None) != self.plain:
            return loss
        self.calls += 1
        return self.how(loss) if self.calls > self.at else loss


def raises(loss):
    raise ValueError("the classifier is gone")


def nan_gradient(loss):
    """A finite value whose gradient is not: sqrt at 0."""
    return loss + (loss - loss).sqrt()


@pytest.fixture(scope="module")
def healthy(tiny):
    """One that runs beside the sick job, and one that takes a slot after it."""
    source = make_source(tiny.model, "a photo of a red sneaker", STEPS)
    beside = make_job(
        tiny.model, "beside", seed=2,
        injection=make_injection(tiny.model, source, "a photo of a boot", FRONT),
        blending=make_blending(source, FRONT),
    )  # fmt: skip
    return beside, make_job(tiny.model, "after", seed=1, iterations=1)


@pytest.fixture(scope="module")
def undisturbed(tiny, healthy):
    return {r.id: r for r in Engine(tiny.model, slots=2).run(healthy)}


def run_beside_healthy(tiny, healthy, undisturbed, sick, shares_batch=True):
    """The sick job's result; checks that the others are bit-identical to a run without it."""
    beside, after = healthy
    queue = [beside, sick, after] if shares_batch else [beside, after, sick]
    results = {r.id: r for r in Engine(tiny.model, slots=2).run(queue)}
    assert len(results) == 3
    for id, expected in undisturbed.items():
        result = results[id]
        assert result.status == "done" and result.error is None
        assert result.history == expected.history
        for name in ("image", "latents", "conditioning", "null_text"):
            assert torch.equal(getattr(result, name), getattr(expected, name)), (id, name)
    failed = results[sick.id]
    assert failed.status == "failed" and failed.error
    return failed


@pytest.mark.parametrize(
    ("loss", "message", "evaluations"),
    [
        (Failing(lambda x: x * torch.nan), "loss 'total' is nan at iteration 0", 0),
        (Failing(lambda x: x / 0, at=1), "loss 'total' is inf at iteration 1", 1),
        (Failing(raises), "ValueError: the classifier is gone", 0),
        (Failing(raises, at=2), "ValueError: the classifier is gone", 2),
        (Failing(raises, plain=False), "ValueError: the classifier is gone", 0),
        (Failing(lambda x: x * torch.nan, at=1, plain=False), "gradient of latents is not", 1),
        (Failing(nan_gradient, at=3, plain=False), "gradient of latents is not finite", 2),
        (Failing(lambda x: x.expand(3)), "Error: ", 0),
        (Failing(lambda x: x.detach(), plain=False), "RuntimeError", 0),
    ],
    ids=[
        "nan", "inf later", "raises", "raises later", "raises on crops", "nan on crops",
        "nan gradient", "not a scalar", "no gradient",
    ],
)  # fmt: skip
def test_losses_that_fail(tiny, healthy, undisturbed, loss, message, evaluations):
    sick = make_job(tiny.model, "sick", seed=3, losses=[loss], iterations=4)
    result = run_beside_healthy(tiny, healthy, undisturbed, sick)
    assert message in result.error
    assert len(result.history) >= evaluations
    assert (result.image is None) == (len(result.history) == 0)


def test_a_nan_term_of_weight_zero_is_named(tiny):
    loss = Failing(lambda x: x * torch.nan)
    loss.weight = 0.0
    job = make_job(tiny.model, losses=[Distance(uniform(*IMAGE_SHAPE)), loss])
    (result,) = Engine(tiny.model).run([job])
    assert result.status == "failed" and "nan" in result.error


def test_a_monitor_that_raises(tiny, healthy, undisturbed):
    def monitor(image):
        raise KeyError("no such class")

    sick = make_job(tiny.model, "sick", monitors={"monitor": monitor})
    assert "no such class" in run_beside_healthy(tiny, healthy, undisturbed, sick).error


@pytest.mark.parametrize("variable", ["latents", "conditioning", "null_text"])
def test_inputs_that_are_not_finite(tiny, healthy, undisturbed, variable):
    sick = make_job(tiny.model, "sick")
    spoilt = getattr(sick, variable).clone()
    spoilt.view(-1)[5] = torch.nan
    result = run_beside_healthy(tiny, healthy, undisturbed, replace(sick, **{variable: spoilt}))
    assert "nan" in result.error and result.image is None


BAD_SHAPES = {
    "latents": ({"latents": torch.zeros(4, 4, 8)}, "latents have shape (4, 4, 8)"),
    "latents with a batch": ({"latents": torch.zeros(1, 4, 8, 8)}, "latents have shape"),
    "conditioning width": ({"conditioning": torch.zeros(16, 8)}, "conditioning has shape (16, 8)"),
    "conditioning steps": ({"conditioning": torch.zeros(3, 16, 16)}, "T = 4 steps"),
    "null text steps": ({"null_text": torch.zeros(5, 16, 16)}, "T = 4 steps"),
    "no null text": ({"null_text": None}, "null_text is None"),
    "no losses": ({"losses": []}, "no losses"),
    "losses of one name": (
        {"losses": [Distance(uniform(*IMAGE_SHAPE))] * 2}, "distinct names"
    ),
    "a monitor named total": ({"monitors": {"total": lambda x: 0}}, "distinct names"),
    "injection steps": ({"injection": Injection({}, torch.eye(16), (1.0,))}, "1 weights"),
    "blending steps": (
        {"blending": Blending(torch.ones(8, 8), torch.zeros(4, 4, 8, 8), (1.0,) * 5)}, "5 weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_jobs_that_do_not_fit(tiny, healthy, undisturbed, case):
    changes, message = BAD_SHAPES[case]
    sick = replace(make_job(tiny.model, "sick"), **changes)
    result = run_beside_healthy(tiny, healthy, undisturbed, sick)
    assert message in result.error and "sick" in result.error
    assert result.history == () and result.image is None


def changed_source(injection, **changes):
    """The injection with one layer's SourceAttention changed."""
    name, source = next(iter(injection.layers.items()))
    values = {key: change(getattr(source, key)) for key, change in changes.items()}
    return replace(injection, layers={**injection.layers, name: replace(source, **values)})


BAD_EDITS = {
    "conditioning of one dimension": lambda job, source: {"conditioning": torch.zeros(16)},
    "blending mask": lambda job, source: {
        "blending": replace(make_blending(source, FRONT), mask=torch.ones(16, 16))
    },
    "blending latents": lambda job, source: {
        "blending": replace(make_blending(source, FRONT), source_latents=torch.zeros(4, 4, 4, 4))
    },
    "too few blending latents": lambda job, source: {
        "blending": replace(make_blending(source, FRONT), source_latents=torch.zeros(1, 4, 8, 8))
    },
    "injection mapping": lambda job, source: {
        "injection": replace(job.injection, mapping=torch.eye(7))
    },
    "too few injected steps": lambda job, source: {
        "injection": replace(job.injection, weights=(1.0, 1.0, 1.0, 0.0))
    },
    "too few steps of self-attention": lambda job, source: {
        "self_injection": replace(job.self_injection, weights=(1.0, 1.0, 1.0, 0.0))
    },
    "self-attention in a layer of another kind": lambda job, source: {
        "self_injection": replace(job.self_injection, layers=job.injection.layers)
    },
    "self-attention with the keys of one step": lambda job, source: {
        "self_injection": changed_source(job.self_injection, keys=lambda x: x[:1])
    },
    "self-attention's map of another size": lambda job, source: {
        "self_injection": changed_source(job.self_injection, keys=lambda x: None)
    },
    "injected layers": lambda job, source: {
        "injection": replace(
            job.injection, layers={"no such layer": next(iter(job.injection.layers.values()))}
        )
    },
    "null text length": lambda job, source: {"null_text": job.null_text[:7]},
    "more steps than the model was trained with": lambda job, source: {
        "settings": replace(job.settings, steps=1001), "injection": None, "self_injection": None
    },
    "nothing to optimise": lambda job, source: {
        "settings": replace(job.settings, guidance_scale=1.0, variables=("null_text",))
    },
    "injection mapping from fewer tokens": lambda job, source: {
        "injection": replace(job.injection, mapping=torch.eye(16)[:, :7])
    },
    "source queries of another size": lambda job, source: {
        "injection": changed_source(job.injection, tensor=lambda x: x[:, :, :5])
    },
    "source keys of another prompt length": lambda job, source: {
        "injection": changed_source(job.injection, keys=lambda x: x[:, :7])
    },
}  # fmt: skip
# They would wait for the slots to drain, so the others would run in one slot.
IN_NO_BATCH = (
    "conditioning of one dimension",
    "more steps than the model was trained with",
    "nothing to optimise",
)


@pytest.mark.parametrize("case", BAD_EDITS)
def test_jobs_whose_edits_or_settings_do_not_fit(tiny, healthy, undisturbed, case):
    source = make_source(tiny.model, "a photo of a red sneaker", STEPS)
    injection = make_injection(tiny.model, source, "a photo of a boot", FRONT)
    own = make_self_injection(tiny.model, source, FRONT)
    sick = make_job(tiny.model, "sick", injection=injection, self_injection=own)
    sick = replace(sick, **BAD_EDITS[case](sick, source))
    result = run_beside_healthy(tiny, healthy, undisturbed, sick, case not in IN_NO_BATCH)
    assert result.history == () and len(result.error) > 20


def test_a_failure_keeps_the_best_image_so_far(tiny):
    job = make_job(tiny.model, losses=[Failing(raises, at=3)], iterations=9, learning_rate=0.05)
    (result,) = Engine(tiny.model).run([job])
    assert result.status == "failed" and len(result.history) == 3
    assert result.image is not None
    best = min(range(3), key=lambda i: result.history[i]["total"])
    assert result.best_iteration == best
    distance = Distance(uniform(*IMAGE_SHAPE))
    torch.testing.assert_close(
        (result.image - distance.reference).square().mean().item(),
        result.history[best]["total"],
    )


def test_all_jobs_fail(tiny):
    jobs = [make_job(tiny.model, str(n), losses=[Failing(raises)]) for n in range(3)]
    results = list(Engine(tiny.model, slots=2).run(jobs))
    assert [r.status for r in results] == ["failed"] * 3
    results = Engine(tiny.model, slots=2).evaluate(jobs)
    assert [r.id for r in results] == ["0", "1", "2"]


def test_interrupts_are_not_swallowed(tiny):
    def interrupt(loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Engine(tiny.model).run([make_job(tiny.model, losses=[Failing(interrupt)])]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0), ("guidance_scale", -1.0), ("iterations", -1), ("last_steps", 0),
        ("learning_rate", 0.0), ("latent_lr_factor", -0.1), ("optimiser", "lbfgs"),
        ("schedule", "linear"), ("clip_gradients", 0.0), ("variables", ()),
        ("variables", ("latent",)),
    ],
)  # fmt: skip
def test_settings_are_checked(option, value):
    with pytest.raises(UserError, match=option) as error:
        Settings(**{option: value})
    assert repr(value) in str(error.value) or "latent" in str(error.value)


def test_early_stop_is_checked(tiny):
    with pytest.raises(UserError, match="held_for"):
        EarlyStop(0.1, held_for=0)
    for bounds in ({}, {"below": 1.0, "above": 0.0}):
        with pytest.raises(UserError, match="below and above"):
            EarlyStop(**bounds)
    job = make_job(tiny.model, early_stop=EarlyStop(above=0.9, of="confidense"))
    (result,) = Engine(tiny.model, slots=1, kept_steps=0).run([job])
    assert result.status == "failed" and "early_stop is of 'confidense'" in result.error
