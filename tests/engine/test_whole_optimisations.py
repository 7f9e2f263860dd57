"""The engine against the plain reference, over whole optimisations of all four tasks in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from tiny import (
    IMAGE_SHAPE,
    LATENT_SHAPE,
    assert_near,
    build_classifier,
    make_job,
    reference_editing,
    uniform,
)

from fastdigin.engine import batch
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Candidate, Settings
from fastdigin.engine.slot import Slot
from fastdigin.objectives import Cutouts
from fastdigin.photos import ImageInput
from fastdigin.tasks.counterfactual import CounterfactualSettings, counterfactuals
from fastdigin.tasks.disagreement import DisagreementSettings, disagreements
from fastdigin.tasks.neuron_counterfactual import (
    NeuronCounterfactualSettings,
    neuron_counterfactuals,
)
from fastdigin.tasks.neurons import NeuronSettings, visualise_neurons

OPTIMISATION = Settings(steps=5, iterations=3)
CUTOUTS = Cutouts(count=4)


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


def photos():
    """Two images, one with a mask of its own."""
    mask = torch.zeros(16, 16)
    mask[4:12, 3:11] = 1
    return [
        ImageInput("one", uniform(*IMAGE_SHAPE, seed=1), "a photo of a red sneaker on grass",
                   "sneaker", "boot"),
        ImageInput("two", uniform(*IMAGE_SHAPE, seed=2), "a blue bag", "bag", "sneaker", mask),
    ]  # fmt: skip


def test_counterfactuals(either, seen):
    """Inversion, injection of another prompt's attention, background blending and distances."""
    engine = Engine(either.model, slots=2)
    settings = CounterfactualSettings(
        OPTIMISATION, null_text_steps=2, injection_fractions=(0.5,), blending_fractions=(0.3,),
        cutouts=CUTOUTS,
    )  # fmt: skip
    explanations = list(
        counterfactuals(engine, photos(), build_classifier(), settings=settings, seed=5)
    )
    assert len(explanations) == len(seen) == 2
    for (job, images), explanation in zip(seen, explanations, strict=True):
        assert job.injection.weights == (1.0, 1.0, 1.0, 0.0, 0.0)
        assert job.blending.weights == (1.0, 1.0, 0.0, 0.0, 0.0)
        assert len(job.losses) == 3
        source = job.info.source.inversion
        assert_follows_reference(either.pipe, job, images, explanation.result, source)


def test_disagreements(tiny, seen):
    """Two classifiers, one of them on crops of its own size."""
    engine = Engine(tiny.model, slots=3)
    g = build_classifier(seed=1, name="other")
    g.size = 10
    settings = DisagreementSettings(OPTIMISATION, cutouts=CUTOUTS)
    explanations = list(
        disagreements(engine, build_classifier(), g, ["boot", "bag"], settings=settings, seed=3)
    )
    assert len(explanations) == len(seen) == 2
    for (job, images), explanation in zip(seen, explanations, strict=True):
        assert_follows_reference(tiny.pipe, job, images, explanation.result)


def test_neurons(tiny, seen):
    engine = Engine(tiny.model, slots=2)
    settings = NeuronSettings(OPTIMISATION, samples_per_word=2, cutouts=CUTOUTS)
    dataset = [uniform(*IMAGE_SHAPE, seed=s) for s in range(3)]
    explanations = list(
        visualise_neurons(
            engine, build_classifier(), [1, 4], ["red boot", "bag"], dataset, settings=settings
        )
    )
    assert len(explanations) == len(seen) == 2
    for (job, images), explanation in zip(seen, explanations, strict=True):
        assert_follows_reference(tiny.pipe, job, images, explanation.result)


def test_neuron_counterfactuals(tiny, seen):
    """Injection of the unchanged prompt's attention and blending of the foreground."""
    engine = Engine(tiny.model, slots=2)
    settings = NeuronCounterfactualSettings(OPTIMISATION, null_text_steps=2)
    explanations = list(
        neuron_counterfactuals(
            engine, photos(), build_classifier(), [2, 5], ["max", "min"], settings=settings
        )
    )
    assert len(explanations) == len(seen) == 2
    for (job, images), explanation in zip(seen, explanations, strict=True):
        assert torch.equal(job.injection.mapping, torch.eye(16, dtype=torch.float64))
        assert job.injection.weights == job.blending.weights == (1.0, 1.0, 0.0, 0.0, 0.0)
        source = job.info.source.inversion
        assert_follows_reference(tiny.pipe, job, images, explanation.result, source)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"last_steps": 1, "learning_rate": 0.03, "latent_lr_factor": 0.5},
        {"steps": 2, "last_steps": 3},
        {"guidance_scale": 0.5, "last_steps": 2},
    ],
    ids=str,
)
def test_other_settings(tiny, settings, seen):
    engine = Engine(tiny.model, slots=1)
    job = make_job(tiny.model, seed=4, iterations=3, **settings)
    (result,) = engine.run([job])
    job, images = seen[0]
    assert job.latents.shape == LATENT_SHAPE
    assert_follows_reference(tiny.pipe, job, images, result)


def test_jobs_of_all_kinds_in_one_batch(tiny, seen):
    """Different K, guidance, rates and lengths side by side each follow their own reference."""
    engine = Engine(tiny.model, slots=3)
    jobs = [
        make_job(tiny.model, "a", seed=1, last_steps=1, guidance_scale=2.0),
        make_job(tiny.model, "b", seed=2, last_steps=3, iterations=3),
        make_job(tiny.model, "c", seed=3, last_steps=2, iterations=1, learning_rate=0.05),
        make_job(tiny.model, "d", seed=4, guidance_scale=5.0),
    ]
    results = {result.id: result for result in engine.run(jobs)}
    for job, images in seen:
        assert_follows_reference(tiny.pipe, job, images, results[job.id])
