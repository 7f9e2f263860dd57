"""Schedules of injection and blending, and that both follow them."""

import math

import pytest
import torch
from tiny import LATENT_SHAPE, make_source, normal

from fastdigin.editing.attention_store import store_attention
from fastdigin.editing.masks import blending
from fastdigin.editing.schedules import Cosine, Threshold, parse_schedule, schedule_weights
from fastdigin.errors import UserError

STEPS = 5
SCHEDULES = {
    "nothing": (0.0, (0, 0, 0, 0, 0)),
    "one step": (0.2, (1, 0, 0, 0, 0)),
    "between two steps": (0.3, (1, 1, 0, 0, 0)),
    "on a step": (Threshold(0.4), (1, 1, 0, 0, 0)),
    "everything": (1.0, (1, 1, 1, 1, 1)),
    "later": (Threshold(0.7, start=0.4), (0, 0, 1, 1, 0)),
    "the rest": (Threshold(1.0, start=0.5), (0, 0, 0, 1, 1)),
    "cosine": (Cosine(), tuple(math.cos(math.pi * i / 10) ** 2 for i in range(5))),
    "tilted": (Cosine(2.0), tuple(math.cos(math.pi * (i / 5) ** 2 / 2) ** 2 for i in range(5))),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_weights(case):
    """w_i = 1 while i / T is below the threshold; the cosine is written as a square here."""
    schedule, expected = SCHEDULES[case]
    assert schedule_weights(schedule, STEPS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("case", "reach"), [("nothing", 0), ("between two steps", 2), ("later", 4), ("cosine", 5)]
)
def test_injection_and_blending_follow_the_schedule(tiny, case, reach):
    """No more of the source is stored than the schedules reach."""
    schedule, weights = SCHEDULES[case]
    source = make_source(tiny.model, "a red sneaker", STEPS)
    (store,) = store_attention(tiny.model, [source], [0.1, schedule], batch=1)
    assert {len(kept.tensor) for kept in store.layers.values()} == {max(reach, 1)}
    injection = store.injection(torch.eye(16), schedule, STEPS)
    trajectory = normal(STEPS + 1, *LATENT_SHAPE)
    blend = blending(torch.ones(8, 8), trajectory, schedule)
    assert injection.weights == blend.weights == pytest.approx(weights)
    assert torch.equal(blend.source_latents, trajectory[:-1])
    (maps_only,) = store_attention(tiny.model, [source], [], batch=1)
    assert maps_only.layers == {} and torch.equal(maps_only.maps, store.maps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(1.2), "until must be a fraction from 0 to 1, got 1.2"),
        (lambda: Threshold(start=-0.1), "start must be a fraction from 0 to 1, got -0.1"),
        (lambda: Cosine(0.0), "tilt must be above 0, got 0.0"),
        (lambda: Cosine(math.inf), "tilt must be above 0, got inf"),
        (lambda: schedule_weights(2, 5), "until must be a fraction"),
    ],
)
def test_impossible_schedules(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.3", 0.3), ("1", 1.0), (".5", 0.5), ("0-1", Threshold(1.0, 0.0).until),
        ("0.1-0.4", Threshold(0.4, 0.1)), ("cosine", Cosine()), ("cosine:1.5", Cosine(1.5)),
    ],
)  # fmt: skip
def test_texts_of_schedules(text, expected):
    found = parse_schedule(text)
    assert schedule_weights(found, 10) == schedule_weights(expected, 10)


@pytest.mark.parametrize("text", ["", "-1", "nan", "1.5", "cosine:0", "cosine:", "0.1-", "0.2-3"])
def test_texts_that_are_no_schedules(text):
    with pytest.raises(UserError):
        parse_schedule(text)
