"""Wherever memory runs out, the batch is halved and goes on; only what never fits fails, alone."""

import pytest
import torch
from four_tasks import CUTOUTS
from tiny import IMAGE_SHAPE, build_classifier, make_job, uniform

from fastdigin.engine import batch
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.engine.slot import Slot
from fastdigin.objectives import Distance
from fastdigin.photos import ImageInput
from fastdigin.tasks.counterfactual import CounterfactualSettings, counterfactuals

# What else counts as out of memory: tests/engine/test_planning.py.
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. (pretended)")


@pytest.fixture(scope="module")
def classifier():
    return build_classifier()


@pytest.fixture
def scarce(model, monkeypatch):
    """``scarce(most, when)``: the U-Net fails for more than ``most`` rows in calls that ``when``
    picks by (their attention control, whether there is a graph)."""
    predict, failures = model.predict, []

    def make(most, when=lambda control, graph: True):
        def limited(z, t, text, control=None, vector=None):
            if len(z) > most and when(control, torch.is_grad_enabled()):
                failures.append(len(z))
                raise OUT_OF_MEMORY
            return predict(z, t, text, control, vector)

        monkeypatch.setattr(model, "predict", limited)
        return failures

    return make


def photos(count=3):
    return [
        ImageInput(str(n), uniform(*IMAGE_SHAPE, seed=n), "a photo of a sneaker", "sneaker", "boot")
        for n in range(count)
    ]


def explain(model, classifier, count=3):
    settings = CounterfactualSettings(
        Settings(steps=3, iterations=1), null_text_steps=1, injection_fractions=(0.5,),
        blending_fractions=(0.3,), cutouts=CUTOUTS,
    )  # fmt: skip
    engine = Engine(model, slots=4, kept_steps=1, compile="off")
    found = counterfactuals(engine, photos(count), classifier, settings=settings, seed=5)
    return {each.id: each for each in found}


@pytest.fixture(scope="module")
def expected(model, classifier):
    return explain(model, classifier)


WHERE = {
    "everywhere": lambda control, graph: True,
    "recording": lambda control, graph: control is not None and control.store is not None,
    "null-text optimisation": lambda control, graph: control is None and graph,
    "inversion": lambda control, graph: control is None and not graph,
}


@pytest.mark.parametrize("where", WHERE)
def test_photos_are_prepared_and_optimised_in_halves(model, classifier, expected, scarce, where):
    failures = scarce(2, WHERE[where])
    found = explain(model, classifier)
    assert failures and max(failures) >= 4
    assert found.keys() == expected.keys()
    for id, each in found.items():
        assert each.status == "done", each.error
        image = expected[id].result.image
        torch.testing.assert_close(each.result.image, image, rtol=0, atol=1e-6)


def test_photos_that_do_not_fit_alone_fail_one_by_one(model, classifier, scarce):
    scarce(0)
    found = explain(model, classifier)
    assert len(found) == 3
    assert all(r.status == "failed" and "out of memory" in r.error for r in found.values())


def jobs(model, count, **options):
    return [make_job(model, str(n), seed=n, steps=3, **options) for n in range(count)]


@pytest.mark.parametrize("most", [3, 1])
def test_slots_that_cannot_be_filled_wait_for_others(model, monkeypatch, most):
    engine = Engine(model, slots=4, kept_steps=0, compile="off")
    expected = {r.id: r for r in Engine(model, slots=most, kept_steps=0).run(jobs(model, 6))}
    refused = []

    def limited(job, model):
        if engine._batch.advancing >= most:
            refused.append(job.id)
            raise OUT_OF_MEMORY
        return Slot(job, model)

    monkeypatch.setattr(batch, "Slot", limited)
    engine.submit(jobs(model, 6))
    found = []
    while engine.busy:
        found += engine.step()
        assert engine._batch.advancing <= most
    assert refused and sorted(r.id for r in found) == sorted(expected)
    for result in found:
        assert result.status == "done"
        torch.testing.assert_close(result.image, expected[result.id].image, rtol=0, atol=1e-9)


def test_a_job_that_never_fits_into_a_slot_fails_alone(model, monkeypatch):
    def limited(job, model):
        if job.id == "1":
            raise OUT_OF_MEMORY
        return Slot(job, model)

    monkeypatch.setattr(batch, "Slot", limited)
    found = {r.id: r for r in Engine(model, slots=2, kept_steps=0).run(jobs(model, 3))}
    assert {id: r.status for id, r in found.items()} == {"0": "done", "1": "failed", "2": "done"}
    assert "out of memory even alone" in found["1"].error


@pytest.mark.parametrize("plain", [True, False])
def test_losses_that_never_fit_fail_their_job_alone(model, plain):
    def greedy(candidate):
        if (candidate.key is None) == plain:
            raise OUT_OF_MEMORY
        return candidate.image.mean()

    greedy.name, greedy.weight = "greedy", 1.0
    target = Distance(uniform(*IMAGE_SHAPE))
    queue = jobs(model, 3, losses=[target])
    queue[1] = make_job(model, "1", steps=3, losses=[target, greedy])
    found = {r.id: r for r in Engine(model, slots=3, kept_steps=2).run(queue)}
    assert {id: r.status for id, r in found.items()} == {"0": "done", "1": "failed", "2": "done"}
    assert "out of memory even alone" in found["1"].error


def test_an_optimiser_without_memory_fails_its_job_alone(model, monkeypatch):
    update = Slot.update

    def limited(self, gradients):
        if self.job.id == "1":
            raise OUT_OF_MEMORY
        update(self, gradients)

    monkeypatch.setattr(Slot, "update", limited)
    found = {r.id: r for r in Engine(model, slots=3, kept_steps=0).run(jobs(model, 3))}
    assert {id: r.status for id, r in found.items()} == {"0": "done", "1": "failed", "2": "done"}
