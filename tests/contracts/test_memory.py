"""Memory: as much as predicted, the same for any number of steps, and nothing lost without it."""

import logging

import pytest
import torch
from diffusers import LCMScheduler
from tiny import (
    SD_NOISE,
    build_classifier,
    make_blending,
    make_injection,
    make_job,
    make_source,
    multistep_scheduler,
    with_scheduler,
)

from fastdigin.engine.costs import COPIES, state_bytes
from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import Step, StepFunctions, unrolled_backward, unrolled_forward
from fastdigin.engine.steps import BatchSteps, on_device
from fastdigin.hardware import LiveBytes
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin_bench.gradients import in_precision

STEPS = 6


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model


def jobs(model, count, iterations=2, **arguments):
    loss = ClassConfidence(build_classifier(), 0, cutouts=Cutouts(4))
    for seed in range(count):
        yield make_job(
            model,
            id=str(seed),
            losses=[loss],
            seed=seed,
            steps=STEPS,
            iterations=iterations,
            **arguments,
        )


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("slots", "kept"), [(1, 0), (2, 3), (4, 0), (4, STEPS)])
def test_the_predicted_peak_is_the_measured_one(model, slots, kept, edited):
    """And with it as the budget, no fewer steps are kept: the first may cost nothing more."""
    edits = {}
    if edited:
        source = make_source(model, "a photo of a red sneaker", STEPS)
        weights = (1.0, 1.0) + (0.0,) * (STEPS - 2)
        edits["injection"] = make_injection(model, source, "a photo of a cat", weights, "queries")
        edits["blending"] = make_blending(source, weights)
    planned = Engine(model, memory="1GiB", slots=slots, kept_steps=kept)
    with LiveBytes() as live:
        results = list(planned.run(jobs(model, slots, **edits)))
    assert [r.status for r in results] == ["done"] * slots
    assert planned.plan.predicted == pytest.approx(live.peak, rel=0.12)

    again = Engine(model, memory=planned.plan.predicted, slots=slots)
    list(again.run(jobs(model, slots, **edits)))
    assert again.plan.slots == slots and kept <= again.plan.kept_steps <= max(kept, 1)
    assert again.plan.predicted == planned.plan.predicted


def test_peak_does_not_grow_with_the_steps(embedded):
    """But for the latents of each step, and the gradients that are the result."""
    text = embedded.encode_prompts(["a photo of a red boot", ""])
    z = torch.zeros(2, *embedded.latent_shape)
    peaks = []
    for count in (3, 12):
        table = embedded.ddim_table(count)
        steps = [
            Step(t.expand(2), row.float().expand(2, 4), torch.tensor([3.0, 3.0]))
            for t, row in zip(table.timesteps, table.step, strict=True)
        ]
        cond, null = (x.expand(2, count, -1, -1) for x in text)
        with LiveBytes() as live:
            run = unrolled_forward(StepFunctions(embedded), z, cond, null, steps, 1)
            unrolled_backward(StepFunctions(embedded), run.inputs, cond, null, steps, [z])
        of_each_step = z.numel() + cond[:, 0].numel() + null[:, 0].numel()
        peaks.append(live.peak - 4 * count * of_each_step)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)


@pytest.mark.parametrize(
    ("scheduler", "latents"),
    [
        (None, 1),
        (multistep_scheduler(), 2),
        (LCMScheduler(**SD_NOISE), 3),
    ],
    ids=["ddim", "multistep", "stochastic"],
)
def test_what_the_loop_stores_of_a_step_is_counted(tiny, scheduler, latents):
    """States, and noise as it was drawn and as it is added: in fp32 to the byte."""
    two = tiny if scheduler is None else with_scheduler(tiny, scheduler)
    model = in_precision(two.model, torch.float32)
    held, counted = [], []
    for count in (4, 24):
        job = make_job(model, steps=count)
        z, *texts = (x[None].float() for x in (job.latents, job.conditioning, job.null_text))
        texts = [text[:, None].expand(-1, count, -1, -1) for text in texts]
        with LiveBytes() as live:
            steps = BatchSteps(model, [on_device(job, model)], torch.float32)
            run = unrolled_forward(StepFunctions(model), z, *texts, steps, 1)
            held.append(live.now)
        assert len(run.inputs) == count
        counted.append(state_bytes(model, count, 16) - 4 * COPIES * 2 * count * 16 * 16)
    assert counted[1] - counted[0] == 20 * latents * z.numel() * 4
    # The tables of coefficients are a few numbers a step.
    assert held[1] - held[0] == pytest.approx(counted[1] - counted[0], abs=20 * 160)


class Scarce:
    """Lets the U-Net run out of memory whenever graphs of more than ``most`` rows are alive."""

    def __init__(self, model, monkeypatch, most):
        self.graphs = self.failures = 0
        predict, vjp = model.predict, StepFunctions.vjp

        def scarce(z, *args):
            if torch.is_grad_enabled():
                if len(z) * (self.graphs + 1) > most:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")
                self.graphs += 1
            else:
                self.graphs = 0
            return predict(z, *args)

        def consume(*args):
            self.graphs -= 1
            return vjp(*args)

        monkeypatch.setattr(model, "predict", scarce)
        monkeypatch.setattr(StepFunctions, "vjp", consume)


@pytest.mark.parametrize(("most", "slots", "kept"), [(16, 4, 1), (8, 4, 1), (7, 2, 0), (3, 1, 0)])
def test_running_out_of_memory_loses_nothing(model, monkeypatch, caplog, most, slots, kept):
    """Rows are twice the slots with guidance; six kept steps of four slots are 48 at once."""
    expected = {r.id: r for r in Engine(model, slots=4, kept_steps=0).run(jobs(model, 6))}
    scarce = Scarce(model, monkeypatch, most)
    engine = Engine(model, slots=4, kept_steps=STEPS)
    with caplog.at_level(logging.WARNING):
        results = list(engine.run(jobs(model, 6)))
    assert scarce.failures > 0 and "out of memory with 4 slots" in caplog.text
    assert (engine.plan.slots, engine.plan.kept_steps) == (slots, kept)
    assert sorted(r.id for r in results) == sorted(expected)
    for result in results:
        wanted = expected[result.id]
        assert result.status == "done" and len(result.history) == len(wanted.history) == 3
        torch.testing.assert_close(result.image, wanted.image, rtol=0, atol=1e-6)


def test_memory_that_never_suffices_fails_the_jobs_one_by_one(model, monkeypatch):
    Scarce(model, monkeypatch, most=0)
    results = list(Engine(model, slots=2, kept_steps=1).run(jobs(model, 3)))
    assert [r.status for r in results] == ["failed"] * 3
    assert all("out of memory even alone" in r.error for r in results)
