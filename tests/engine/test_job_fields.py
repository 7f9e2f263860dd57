"""A job whose fields are nothing that they could be fails alone, before the batch looks at it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import LATENT_SHAPE, make_job

import fastdigin as fd
from fastdigin.engine.engine import Engine

BRIEF = {"steps": 2, "iterations": 1}
META = torch.empty(LATENT_SHAPE, device="meta")
WHOLE = torch.zeros(LATENT_SHAPE, dtype=torch.int64)


class Loss(SimpleNamespace):
    def __call__(self, candidate):
        return self.value(candidate)


def loss(**fields):
    return Loss(**{"name": "own", "weight": 1.0, "value": lambda c: c.image.mean()} | fields)


def without(name):
    lacking = loss()
    delattr(lacking, name)
    return lacking


WRONG = [
    ({"latents": None}, "latents is None"),
    ({"latents": [[0.0]]}, "latents is [[0.0]]"),
    ({"latents": META}, "latents is on meta"),
    ({"latents": WHOLE}, "latents is of torch.int64"),
    ({"conditioning": None}, "conditioning is None"),
    ({"conditioning": "a boot"}, "conditioning is 'a boot'"),
    ({"null_text": 0.0}, "null_text is 0.0"),
    ({"pooled": ()}, "pooled is ()"),
    ({"noise": META}, "noise is on meta"),
    ({"id": None}, "id is None"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": True}, "seed is True"),
    ({"settings": None}, "settings is None"),
    ({"settings": {"steps": 2.5}}, "settings is {'steps': 2.5}"),
    ({"losses": None}, "losses is None"),
    ({"losses": ()}, "has no losses"),
    ({"losses": [None]}, "losses[0] is None"),
    ({"losses": [without("name")]}, "wanted a callable with a name"),
    ({"losses": [without("weight")]}, "and a weight"),
    ({"losses": [loss(weight=float("nan"))]}, "a finite number"),
    ({"losses": [loss(name=3)]}, "losses[0] is"),
    ({"losses": [loss(value=lambda c: 0.5)]}, "loss 'own' returned 0.5"),
    ({"losses": [loss(value=lambda c: None)]}, "loss 'own' returned None"),
    ({"losses": [loss(value=lambda c: c.image)]}, "loss 'own' returned tensor("),
    ({"injection": "all"}, "injection is 'all'"),
    ({"injection": fd.Injection({}, None, (1.0, 0.0))}, "injection.mapping is None"),
    ({"injection": fd.Injection({}, torch.eye(2), (1.0, 7.0))}, "injection has weights"),
    ({"self_injection": fd.SelfInjection({"x": 3}, (1.0, 0.0))}, "AttributeError"),
    ({"blending": fd.Blending(META, META, (1.0, 0.0))}, "blending.mask is on meta"),
    ({"monitors": None}, "monitors is None"),
    ({"monitors": {"mean": 3}}, "monitors has 'mean': 3"),
    ({"monitors": {3: torch.mean}}, "monitors has 3"),
]


def test_each_fails_alone(tiny):
    """Among good ones, which end with the bits that they have without them."""
    good = [make_job(tiny.model, f"good-{n}", seed=n, **BRIEF) for n in range(2)]
    wrong = [replace(good[0], **{"id": f"wrong-{n}"} | bad) for n, (bad, _) in enumerate(WRONG)]
    engine = Engine(tiny.model, slots=2)
    alone = {result.id: result for result in engine.run(good)}
    found = list(engine.run([wrong[0], good[0], *wrong[1:], good[1]]))
    assert len(found) == len(WRONG) + 2
    for result in found:
        if result.status == "done":
            assert torch.equal(result.image, alone[result.id].image)
    errors = [result.error for result in found if result.status == "failed"]
    assert len(errors) == len(WRONG)
    for _, words in WRONG:
        assert any(words in error for error in errors), (words, errors)


@pytest.mark.parametrize("jobs", [None, 5, "a job"])
def test_what_is_no_list_of_jobs_is_refused_by_name(tiny, jobs):
    jobs = make_job(tiny.model, "alone", **BRIEF) if jobs == "a job" else jobs
    engine = Engine(tiny.model, slots=1)
    for use in (lambda: list(engine.run(jobs)), lambda: engine.submit(jobs)):
        with pytest.raises(fd.UserError, match="jobs is .*, wanted a list, each a Job or Stage"):
            use()


def test_no_grad_does_no_harm_and_inference_mode_is_refused(tiny):
    job = make_job(tiny.model, "a", **BRIEF)
    engine = Engine(tiny.model, slots=1)
    (expected,) = engine.run([job])
    with torch.no_grad():
        (found,) = engine.run([job])
    assert torch.equal(found.image, expected.image)
    for call in (lambda: list(engine.run([job])), engine.step, lambda: engine.evaluate([job])):
        with torch.inference_mode(), pytest.raises(fd.UserError, match="inference_mode"):
            call()
    with torch.inference_mode():
        made_inside = make_job(tiny.model, "b", **BRIEF)
    (failed,) = engine.run([made_inside])
    assert "clone it outside" in failed.error
    (found,) = engine.run([job])
    assert torch.equal(found.image, expected.image)
