"""A result does not depend on its slot, its neighbours or its place in the queue: bit for bit."""

import time
from dataclasses import replace

import pytest
import torch
from tiny import (
    IMAGE_SHAPE,
    build_classifier,
    make_blending,
    make_injection,
    make_job,
    make_source,
    normal,
    uniform,
)

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import EarlyStop
from fastdigin.objectives import ClassConfidence, Cutouts, Distance, NeuronActivation

STEPS = 4
FRONT, FIRST, FADING = (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 0.5, 0.25, 0.0)
TENSORS = ("image", "initial_image", "latents", "conditioning", "null_text")


def assert_identical(actual, expected):
    assert actual.status == expected.status and actual.error == expected.error
    assert actual.history == expected.history
    assert actual.best_iteration == expected.best_iteration
    for name in TENSORS:
        a, e = getattr(actual, name), getattr(expected, name)
        assert (a is None) == (e is None) and (a is None or torch.equal(a, e)), (actual.id, name)


SLOTS = 4


@pytest.fixture(scope="module")
def zoo(tiny):
    """Jobs of all tasks, of different lengths, with and without edits."""
    model, f, g = tiny.model, build_classifier(), build_classifier(1)
    crops = Cutouts(count=3)
    source = make_source(model, "a photo of a red sneaker", STEPS)
    other = make_source(model, "a blue bag on grass", STEPS, seed=1)
    target, mask = uniform(*IMAGE_SHAPE, seed=9), uniform(16, 16, seed=8)
    return [
        make_job(model, "plain", seed=1),
        make_job(
            model, "counterfactual", seed=2, iterations=3, prompt="a photo of a red boot",
            losses=[
                ClassConfidence(f, "boot", cutouts=crops),
                Distance(target, region="background", mask=mask, weight=250.0),
                Distance(source.trajectory[-1], "latents", region="background", mask=mask,
                         weight=25.0, name="latents"),
            ],
            injection=make_injection(model, source, "a photo of a red boot", FRONT),
            blending=make_blending(source, FIRST),
        ),
        make_job(
            model, "disagreement", seed=3, guidance_scale=7.5, last_steps=1,
            losses=[
                ClassConfidence(f, "bag", "conf", cutouts=crops),
                ClassConfidence(g, "bag", "conf", maximise=False, cutouts=crops, name="g"),
            ],
            monitors={"g_bag": lambda image: g.probabilities(image[None])[0, 2]},
        ),
        make_job(
            model, "neuron", seed=4, iterations=1, optimiser="sgd", learning_rate=0.5,
            losses=[NeuronActivation(f, 3, cutouts=crops)],
        ),
        make_job(
            model, "neuron counterfactual", seed=5, prompt=other.prompt, last_steps=2,
            losses=[NeuronActivation(g, 1, maximise=False), Distance(target, norm="l1")],
            injection=make_injection(model, other, other.prompt, FADING),
            blending=make_blending(other, FRONT, seed=1),
        ),
        make_job(
            model, "stops early", seed=6, iterations=5, schedule="cosine", shared_deltas=True,
            early_stop=EarlyStop(1e9, held_for=2),
        ),
        make_job(model, "only looked at", seed=7, iterations=0, guidance_scale=2.0),
        make_job(
            model, "one variable", seed=8, variables=("conditioning",), normalise_gradients=True
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tiny, zoo):
    """The truth: each job beside three copies of itself."""
    truth = {}
    for job in zoo:
        results = list(Engine(tiny.model, slots=SLOTS).run([job] * SLOTS))
        assert [r.status for r in results] == ["done"] * SLOTS
        for result in results[1:]:
            assert_identical(result, results[0])
        truth[job.id] = results[0]
    return truth


def test_the_zoo_is_diverse(alone):
    """Every job does something, and no two the same."""
    assert [r.iterations for r in alone.values()] == [2, 3, 2, 1, 2, 1, 0, 2]
    for result in alone.values():
        if result.iterations:
            assert len({row["total"] for row in result.history}) == len(result.history)
    images = [r.initial_image for r in alone.values()]
    assert all((a - b).abs().max() > 0.05 for a in images for b in images if a is not b)


@pytest.mark.parametrize("order", ["backwards", "shuffled"])
def test_any_slot_any_neighbours_any_order(tiny, zoo, alone, order):
    """Eight jobs through four slots: every slot is refilled, at different moments."""
    numbers = {
        "backwards": [7, 6, 5, 4, 3, 2, 1, 0],
        "shuffled": [4, 6, 1, 0, 7, 3, 5, 2],
    }[order]
    results = list(Engine(tiny.model, slots=SLOTS).run([zoo[n] for n in numbers]))
    assert sorted(r.id for r in results) == sorted(alone)
    for result in results:
        assert_identical(result, alone[result.id])


def test_repeated_runs_are_identical_with_more_threads(tiny, zoo, threads):
    threads(2)
    queue = [zoo[n] for n in (1, 4, 0, 2, 3)]
    first = {r.id: r for r in Engine(tiny.model, slots=SLOTS).run(queue)}
    for result in Engine(tiny.model, slots=SLOTS).run(queue[::-1]):
        assert_identical(result, first[result.id])


def test_another_number_of_slots_agrees_closely(tiny, zoo, alone):
    """Kernels differ, results only in rounding (fp64)."""
    for slots in (1, 3):
        for result in Engine(tiny.model, slots=slots).run(zoo):
            torch.testing.assert_close(result.image, alone[result.id].image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("slots", [2, 3, 5, 6])
def test_any_number_of_slots(tiny, slots, guidance):
    """Matrix products round the rows of a last, partial block differently: none is left over."""
    job = make_job(tiny.model, seed=1, iterations=1, steps=2, guidance_scale=guidance)
    first, *others = Engine(tiny.model, slots=slots).run([job] * slots)
    assert len(others) == slots - 1
    for other in others:
        assert_identical(other, first)


def test_the_embedded_model_in_fp32(embedded):
    """At its real size, with injection and blending beside plain jobs."""
    source_prompt, prompt = "a photo of a red sneaker on grass", "a photo of a red boot on grass"
    target = uniform(3, 64, 64).float()
    source = make_source_of(embedded, source_prompt)
    injection = make_injection(embedded, source, prompt, FRONT)
    common = {"losses": [Distance(target)], "prompt": prompt, "iterations": 1}
    jobs = [
        make_job(embedded, "plain", seed=1, **common),
        make_job(embedded, "injected", seed=2, **common, injection=injection),
        make_job(embedded, "guided more", seed=3, **common, guidance_scale=6.0),
    ]
    jobs = [replace(j, latents=normal(*embedded.latent_shape, seed=j.seed).float()) for j in jobs]
    engine = Engine(embedded, slots=2)
    first = {r.id: r for r in engine.run([*jobs, jobs[0]])}
    second = {r.id: r for r in engine.run([jobs[1], jobs[2], jobs[0], jobs[0]])}
    for id, result in first.items():
        assert result.status == "done" and result.history[0] != result.history[1]
        assert_identical(result, second[id])


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_that_shrinks_in_fp32(embedded, threads, count):
    """A job that outlasts its neighbours, edited or not, beside others as long as itself."""
    prompt = "a photo of a red boot on grass"
    source = make_source_of(embedded, "a photo of a red sneaker on grass")
    injection = make_injection(embedded, source, prompt, FRONT)
    common = {"losses": [Distance(uniform(3, 64, 64).float())], "prompt": prompt}
    threads(count)
    for edit in ({}, {"injection": injection}):
        short, long = (
            make_job(embedded, str(n), seed=1, iterations=n, **common, **edit) for n in (0, 1)
        )
        drawn = normal(*embedded.latent_shape, seed=1).float()
        short, long = (replace(job, latents=drawn) for job in (short, long))
        engine = Engine(embedded, slots=8, compile="off")
        first, *_ = engine.run([long] * 8)
        for longs in (1, 3):
            *_, last = engine.run([*[short] * (8 - longs), *[long] * longs])
            assert_identical(last, first)
        assert engine.occupancy == 1


def make_source_of(model, prompt):
    source = make_source(model, prompt, STEPS)
    latents = normal(STEPS + 1, *model.latent_shape, seed=5).float()
    return replace(source, trajectory=latents)


def test_seconds_are_shares_of_the_time(tiny):
    """Jobs that shared the slots all along took as long in sum as the clock says."""
    jobs = [make_job(tiny.model, str(n), seed=n, iterations=2 * n) for n in range(1, 4)]
    began = time.perf_counter()
    results = list(Engine(tiny.model, slots=3).run(jobs))
    elapsed = time.perf_counter() - began
    seconds = {result.id: result.seconds for result in results}
    assert 0.5 * elapsed < sum(seconds.values()) <= elapsed
    assert seconds["1"] < seconds["2"] < seconds["3"]
