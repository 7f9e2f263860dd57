"""The engine against the plain reference, over whole optimisations of all four tasks in fp64."""

from dataclasses import replace

import pytest
import reference
import torch
from four_tasks import four_tasks
from tiny import assert_near, make_job, reference_editing

from fastdigin.engine import batch
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Candidate, Settings
from fastdigin.engine.slot import Slot
from fastdigin.objectives import ClassConfidence


@pytest.fixture
def seen(monkeypatch):
    """(job, images of its iterations) of every job that is optimised."""
    found = []

    def watched(job, model):
        images = []

        def look(image):
            images.append(image.clone())
            return torch.zeros(())

        if job.settings.iterations:
            job = replace(job, monitors={**job.monitors, "look": look})
            found.append((job, images))
        return Slot(job, model)

    monkeypatch.setattr(batch, "Slot", watched)
    return found


def reference_trace(pipe, job, source=None):
    """(plain total, image) of every iteration, with the job's own losses and their crops."""

    def loss(image, x0, iteration, k):
        key = None if k is None else (job.seed, iteration, k)
        candidate = Candidate(image[0], x0[0], key)
        return sum(term.weight * term(candidate) for term in job.losses)

    def per_step(text):
        texts = text if text.ndim == 3 else text.expand(job.settings.steps, -1, -1)
        return [x[None] for x in texts]

    pipe.scheduler.set_timesteps(job.settings.steps)
    return reference.optimise(
        pipe,
        job.latents[None].double(),
        per_step(job.conditioning),
        per_step(job.null_text),
        job.settings.guidance_scale,
        loss,
        job.settings.iterations,
        lr=job.settings.learning_rate,
        latent_lr_factor=job.settings.latent_lr_factor,
        last=job.settings.last_steps,
        **reference_editing(job, source),
    )


def assert_follows_reference(pipe, job, images, result, source=None):
    trace = reference_trace(pipe, job, source)
    assert result.status == "done", result.error
    assert len(images) == len(result.history) == len(trace) == job.settings.iterations + 1
    assert (trace[-1][1] - trace[0][1]).abs().max() > 1e-3, "nothing was optimised"
    for row, image, (total, expected) in zip(result.history, images, trace, strict=True):
        assert row["total"] == pytest.approx(total, rel=1e-8)
        assert_near(image, expected[0], 1e-8)
    totals = [total for total, _ in trace]
    assert result.best_iteration == totals.index(min(totals))
    assert_near(result.image, trace[result.best_iteration][1][0], 1e-8)
    assert_near(result.initial_image, trace[0][1][0], 1e-8)


def test_all_tasks(tiny, seen):
    """Two jobs of each task, inversion and search included, side by side."""
    engine = Engine(tiny.model, slots=2)
    explanations = list(four_tasks(engine, Settings(steps=5, iterations=2)))
    assert len(explanations) == len(seen) == 8
    edited = 0
    for (job, images), explanation in zip(seen, explanations, strict=True):
        source = None
        if job.injection is not None:
            edited += 1
            injected = 3 if isinstance(job.losses[0], ClassConfidence) else 2  # 50% or 30%
            assert job.injection.weights == (1.0,) * injected + (0.0,) * (5 - injected)
            assert job.blending.weights == (1.0, 1.0, 0.0, 0.0, 0.0)
            source = job.info.source.inversion
        assert_follows_reference(tiny.pipe, job, images, explanation.result, source)
    assert edited == 4


def test_jobs_of_all_kinds_in_one_batch(tiny, seen):
    """Different K, guidance, rates and lengths side by side each follow their own reference."""
    engine = Engine(tiny.model, slots=3)
    jobs = [
        make_job(tiny.model, "a", seed=1, last_steps=1, guidance_scale=2.0),
        make_job(tiny.model, "b", seed=2, last_steps=3, iterations=3),
        make_job(tiny.model, "c", seed=3, last_steps=2, iterations=1, learning_rate=0.05),
        make_job(tiny.model, "d", seed=4, guidance_scale=5.0),
        make_job(tiny.model, "e", seed=4, iterations=3, guidance_scale=1.0),
        make_job(
            tiny.model, "f", seed=4, iterations=3, last_steps=1, learning_rate=0.03,
            latent_lr_factor=0.5,
        ),
        make_job(tiny.model, "g", seed=4, iterations=3, steps=2, last_steps=3),
        make_job(tiny.model, "h", seed=4, iterations=3, guidance_scale=0.5, last_steps=2),
    ]  # fmt: skip
    results = {result.id: result for result in engine.run(jobs)}
    assert len(seen) == len(jobs)
    for job, images in seen:
        assert_follows_reference(tiny.pipe, job, images, results[job.id])
