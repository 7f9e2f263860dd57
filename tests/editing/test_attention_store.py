"""Stored attention: where it looks, and that injecting it unchanged changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from tiny import (
    IMAGE_SHAPE,
    assert_near,
    make_injection,
    make_job,
    uniform,
)

from fastdigin.editing.attention_store import nearest_layers, store_attention
from fastdigin.editing.inversion import InversionSettings, invert
from fastdigin.engine.batch import BatchSteps
from fastdigin.engine.sampler import StepFunctions, unrolled_forward
from fastdigin.models.attention import attention_map

STEPS = 5
PROMPT = "a photo of a red sneaker"


@pytest.fixture(scope="module")
def inversions(tiny):
    settings = InversionSettings(STEPS, null_text_steps=2)
    images = [uniform(*IMAGE_SHAPE, seed=s) for s in range(2)]
    return invert(tiny.model, images, [PROMPT, "a blue bag"], settings, batch=2)


def last_z(model, job):
    steps = BatchSteps(model, [job], torch.float64)
    per_step = [
        x[None] if x.ndim == 3 else x.expand(1, len(steps), -1, -1)
        for x in (job.conditioning, job.null_text)
    ]
    return unrolled_forward(StepFunctions(model), job.latents[None], *per_step, steps, 1).last[0]


@pytest.mark.parametrize("form", ["queries", "map"])
def test_the_identity_reproduces_the_source(tiny, inversions, form):
    """Its own attention along its own trajectory: the sample ends exactly where it did."""
    source = inversions[0]
    injection = make_injection(tiny.model, source, PROMPT, (1.0,) * STEPS, form)
    assert torch.equal(injection.mapping, torch.eye(16, dtype=torch.float64))
    job = make_job(tiny.model, steps=STEPS, injection=injection)
    job = replace(
        job, latents=source.trajectory[0], conditioning=source.conditioning,
        null_text=source.null_text,
    )  # fmt: skip
    assert_near(last_z(tiny.model, job), source.trajectory[-1], 1e-11)
    assert_near(last_z(tiny.model, replace(job, injection=None)), source.trajectory[-1], 1e-11)
    # Not because injection did nothing: from another latent it changes the sample.
    moved = replace(job, latents=job.latents.flip(-1))
    difference = last_z(tiny.model, moved) - last_z(tiny.model, replace(moved, injection=None))
    assert difference.abs().max() > 1e-2


def test_what_is_stored_equals_the_reference_maps(tiny, inversions):
    """Layer by layer and step by step, and the mean that locates objects."""
    stores = store_attention(tiny.model, inversions, [0.5], batch=2)
    tiny.pipe.scheduler.set_timesteps(STEPS)
    for source, store in zip(inversions, stores, strict=True):
        layers = reference.hook_cross_attention(tiny.pipe.unet)
        names = [n.removesuffix(".processor") for n in tiny.pipe.unet.attn_processors]
        processors = dict(zip(names, tiny.pipe.unet.attn_processors.values(), strict=True))
        assert {n for n in names if "attn2" in n} == set(store.layers)
        means = []
        for i, t in enumerate(tiny.pipe.scheduler.timesteps[:3]):
            tiny.pipe.unet(source.trajectory[i : i + 1], t, source.conditioning[None])
            for name, kept in store.layers.items():
                assert len(kept.tensor) == 3  # i / 5 below one half
                actual = attention_map(kept.tensor[i], kept.keys)
                assert_near(actual, processors[name].recorded, 1e-9)
            means += [p.recorded.mean(0) for p in layers if p.recorded.shape[-2] == 64]
        expected = torch.stack(means).mean(0).T.unflatten(-1, (8, 8))
        assert store.maps.shape == (16, 8, 8)
        torch.testing.assert_close(store.maps.double(), expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(store.maps.sum(0).double(), torch.ones(8, 8).double())


def test_stores_do_not_depend_on_the_batch(tiny, inversions):
    """Three sources, two to a batch: the padded last batch gives the same bits."""
    pair = store_attention(tiny.model, inversions, [0.5], batch=2)
    swapped = store_attention(tiny.model, [*inversions[::-1], inversions[0]], [0.5], batch=2)
    assert len(swapped) == 3
    for actual, expected in zip(swapped, [pair[1], pair[0], pair[0]], strict=True):
        assert torch.equal(actual.maps, expected.maps)
        for name, kept in actual.layers.items():
            assert torch.equal(kept.tensor, expected.layers[name].tensor)
            assert torch.equal(kept.keys, expected.layers[name].keys)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((64, 32, 16, 8), 16),
        ((64, 32), 32),
        ((8, 4, 2), 8),
        ((24, 8), 24),  # equally near: the larger
        ((20, 13), 13),
        ((16, 16, 32), 16),
    ],
)
def test_nearest_layers(sides, expected):
    tokens = {f"{side}-{n}": side**2 for n, side in enumerate(sides)}
    assert nearest_layers(tokens) == [
        f"{side}-{n}" for n, side in enumerate(sides) if side == expected
    ]
