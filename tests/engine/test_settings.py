"""Every option of Settings against its formula, with gradients given by hand."""

from dataclasses import replace

import pytest
import torch
from tiny import LATENT_SHAPE, make_job, normal

from fastdigin.engine.slot import Slot

STEPS, UPDATES = 4, 5
RATES = {"latents": 0.004, "conditioning": 0.02, "null_text": 0.02}
NAMES = tuple(RATES)


def gradient(name: str, update: int):
    shape = LATENT_SHAPE if name == "latents" else (STEPS, 16, 16)
    return (1 + update) * normal(*shape, seed=10 * update + NAMES.index(name))


def updated(model, updates=UPDATES, **settings):
    """The slot after ``updates`` updates, and the three variables (latents, deltas) after each."""
    job = make_job(model, iterations=UPDATES, learning_rate=0.02, latent_lr_factor=0.2, **settings)
    slot = Slot(job, model)
    path = [variables(slot)]
    for update in range(updates):
        slot.update({name: gradient(name, update) for name in NAMES})
        path.append(variables(slot))
    return slot, path


def variables(slot):
    return {
        "latents": slot.z.detach().clone(),
        "conditioning": slot.conditioning - slot.job.conditioning,
        "null_text": slot.null_text - slot.job.null_text,
    }


def renormalised(z, norm):
    return z * norm / z.norm()


def expected_path(job, change):
    """``change(name, update, value)`` is the variable after an update; latents keep their norm."""
    values = {
        "latents": job.latents.clone(),
        **{name: torch.zeros(STEPS, 16, 16, dtype=torch.float64) for name in NAMES[1:]},
    }
    norm = values["latents"].norm()
    path = [dict(values)]
    for update in range(UPDATES):
        values = {name: change(name, update, value) for name, value in values.items()}
        values["latents"] = renormalised(values["latents"], norm)
        path.append(dict(values))
    return path


def assert_same_path(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        for name in NAMES:
            torch.testing.assert_close(a[name], e[name], rtol=1e-9, atol=1e-12, msg=name)


def scaled_to(bound, g):
    """As torch clips by the infinity norm."""
    return g * min(1.0, bound / (float(g.abs().max()) + 1e-6))


GRADIENTS = {
    "plain": ({}, lambda name, g: g),
    "normalised": ({"normalise_gradients": True}, lambda name, g: g / g.square().sum().sqrt()),
    "clipped": ({"clip_gradients": 0.5}, lambda name, g: scaled_to(0.5, g)),
    "below the bound": ({"clip_gradients": 100.0}, lambda name, g: scaled_to(100.0, g)),
    "normalised, then clipped": (
        {"normalise_gradients": True, "clip_gradients": 0.01},
        lambda name, g: scaled_to(0.01, g / g.norm()),
    ),
    "shared deltas": (
        {"shared_deltas": True}, lambda name, g: g if name == "latents" else g.sum(0, keepdim=True)
    ),
    **{
        f"only {names}": (
            {"variables": names}, lambda name, g, names=names: g if name in names else 0 * g
        )
        for names in (("latents",), ("conditioning",), ("null_text", "latents"), NAMES[1:])
    },
}  # fmt: skip
"""Settings -> what becomes of a variable's gradient."""


@pytest.mark.parametrize("case", GRADIENTS)
def test_sgd(tiny, case):
    settings, changed = GRADIENTS[case]
    slot, path = updated(tiny.model, optimiser="sgd", **settings)

    def change(name, n, x):
        return x - RATES[name] * changed(name, gradient(name, n))

    assert_same_path(path, expected_path(slot.job, change))
    if "latents" not in settings.get("variables", NAMES):
        assert torch.equal(slot.z, slot.job.latents)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adam_and_adamw(tiny, decay):
    """Kingma & Ba; AdamW with torch's decay of 0.01, which pulls texts to their base."""
    slot, path = updated(tiny.model, optimiser="adamw" if decay else "adam")
    first = {name: 0.0 for name in NAMES}
    second = {name: 0.0 for name in NAMES}

    def change(name, n, x):
        g = gradient(name, n)
        first[name] = 0.9 * first[name] + 0.1 * g
        second[name] = 0.999 * second[name] + 0.001 * g**2
        mean, square = first[name] / (1 - 0.9 ** (n + 1)), second[name] / (1 - 0.999 ** (n + 1))
        return x * (1 - RATES[name] * decay) - RATES[name] * mean / (square.sqrt() + 1e-8)

    assert_same_path(path, expected_path(slot.job, change))


@pytest.mark.parametrize(("iterations", "factors"), [
    (1, [1.0]),
    (4, [1.0, 0.8681980515, 0.55, 0.2318019485]),
])  # fmt: skip
def test_cosine_by_hand(tiny, iterations, factors):
    """0.1 + 0.45 (1 + cos(pi update / iterations)): every rate is a tenth after the last update."""
    slot = Slot(make_job(tiny.model, iterations=iterations, optimiser="sgd", schedule="cosine",
                         learning_rate=0.02, latent_lr_factor=0.2), tiny.model)  # fmt: skip
    for factor in factors:
        before = variables(slot)
        slot.update({name: gradient(name, 0) for name in NAMES})
        after = variables(slot)
        expected = {name: before[name] - factor * RATES[name] * gradient(name, 0) for name in NAMES}
        expected["latents"] = renormalised(expected["latents"], before["latents"].norm())
        assert_same_path([after], [expected])


def test_normalising_a_zero_gradient(tiny):
    slot = Slot(make_job(tiny.model, normalise_gradients=True, optimiser="sgd"), tiny.model)
    before = variables(slot)
    slot.update({name: 0 * gradient(name, 0) for name in NAMES})
    assert_same_path([variables(slot)], [before])


def test_a_latent_rate_of_zero(tiny):
    job = make_job(tiny.model, latent_lr_factor=0.0)
    slot = Slot(job, tiny.model)
    slot.update({name: gradient(name, 0) for name in NAMES})
    torch.testing.assert_close(slot.z, job.latents, rtol=1e-14, atol=0)
    assert (slot.conditioning - job.conditioning).abs().max() > 1e-3


def test_state_is_fp64_for_an_fp64_model_and_fp32_otherwise(tiny, embedded):
    assert Slot(make_job(tiny.model), tiny.model).z.dtype == torch.float64
    latents = torch.ones(embedded.latent_shape, dtype=torch.float64)
    slot = Slot(replace(make_job(embedded), latents=latents), embedded)
    assert {slot.z.dtype, slot.conditioning.dtype, slot.null_text.dtype} == {torch.float32}
