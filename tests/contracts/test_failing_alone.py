"""A job that fails does so alone, with a reason, and the others end as if it had not been there."""

from dataclasses import replace

import pytest
import torch
from tiny import IMAGE_SHAPE, make_blending, make_injection, make_job, make_source, uniform

from fastdigin.engine.engine import Engine
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


def run_beside_healthy(tiny, healthy, undisturbed, sick):
    """The sick job's result; checks that the others are bit-identical to a run without it."""
    beside, after = healthy
    results = {r.id: r for r in Engine(tiny.model, slots=2).run([beside, sick, after])}
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
