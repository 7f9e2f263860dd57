"""Stored attention: where it looks, and that injecting it unchanged changes nothing."""

from dataclasses import replace

import pytest
import reference
import torch
from tiny import (
    IMAGE_SHAPE,
    assert_near,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    uniform,
)

from fastdigin.editing.attention_store import nearest_layers, store_attention
from fastdigin.editing.inversion import InversionSettings, invert
from fastdigin.engine.sampler import StepFunctions, unrolled_forward
from fastdigin.engine.steps import BatchSteps
from fastdigin.errors import UserError
from fastdigin.models.attention import attention_map

STEPS = 5
PROMPT = "a photo of a red sneaker"


@pytest.fixture(scope="module")
def inversions(tiny):
    settings = InversionSettings(STEPS, null_text_steps=2)
    images = [uniform(*IMAGE_SHAPE, seed=s) for s in range(2)]
    return invert(tiny.model, images, [PROMPT, "a blue bag"], settings, batch=2)


def last_z(model, *jobs):
    """(B, C, h, w)."""
    steps, z = BatchSteps(model, jobs, torch.float64), torch.stack([job.latents for job in jobs])
    per_step = [
        torch.stack([x.expand(len(steps), -1, -1) for x in texts])
        for texts in ([job.conditioning for job in jobs], [job.null_text for job in jobs])
    ]
    return unrolled_forward(StepFunctions(model), z, *per_step, steps, 1).last


@pytest.mark.parametrize("form", ["queries", "map"])
def test_the_identity_reproduces_the_source(tiny, inversions, form):
    """Its own attention along its own trajectory: the sample ends exactly where it did."""
    source = inversions[0]
    injection = make_injection(tiny.model, source, PROMPT, (1.0,) * STEPS, form)
    assert torch.equal(injection.mapping, torch.eye(16, dtype=torch.float64))
    own = make_self_injection(tiny.model, source, (1.0,) * STEPS, form)
    job = make_job(tiny.model, steps=STEPS, injection=injection, self_injection=own)
    job = replace(
        job, latents=source.trajectory[0], conditioning=source.conditioning,
        null_text=source.null_text,
    )  # fmt: skip
    unedited = replace(job, injection=None, self_injection=None)
    for each in (job, unedited):
        assert_near(last_z(tiny.model, each)[0], source.trajectory[-1], 1e-11)
    # Not because injection did nothing: from another latent it changes the sample.
    moved, unmoved = (replace(x, latents=job.latents.flip(-1)) for x in (job, unedited))
    assert (last_z(tiny.model, moved) - last_z(tiny.model, unmoved)).abs().max() > 1e-2


def test_what_is_stored_equals_the_reference_maps(tiny, inversions):
    """Layer by layer and step by step, and the mean that locates objects."""
    stores = store_attention(tiny.model, inversions, [0.5], [0.3], batch=2, self_queries=16)
    tiny.pipe.scheduler.set_timesteps(STEPS)
    for source, store in zip(inversions, stores, strict=True):
        layers, _ = reference.hook_attention(tiny.pipe.unet)
        processors = {
            name.removesuffix(".processor"): p for name, p in tiny.pipe.unet.attn_processors.items()
        }
        cross = store.injection(torch.eye(16), 0.5, STEPS).layers
        own = store.self_injection(0.3, STEPS).layers
        means = []
        for i, t in enumerate(tiny.pipe.scheduler.timesteps[:3]):
            tiny.pipe.unet(source.trajectory[i : i + 1], t, source.conditioning[None])
            for name, kept in cross.items():
                assert len(kept.tensor) == 3  # i / 5 below one half
                actual = attention_map(kept.tensor[i], kept.keys)
                assert_near(actual, processors[name].recorded, 1e-9)
            for name, kept in own.items() if i < 2 else ():
                assert len(kept.tensor) == len(kept.keys) == 2  # i / 5 below 0.3
                actual = attention_map(kept.tensor[i], kept.keys[i])
                assert_near(actual, processors[name].recorded, 1e-9)
            means += [p.recorded.mean(0) for p in layers if p.recorded.shape[-2] == 64]
        queries = {name: p.recorded.shape[-2] for name, p in processors.items()}
        assert set(cross) == {name for name in queries if "attn2" in name}
        assert set(own) == {n for n, count in queries.items() if "attn1" in n and count <= 16}
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


def test_jobs_with_other_layers_share_a_batch(tiny):
    """Each injects what it would alone: layers up to 8x8, up to 4x4, and none."""
    source = make_source(tiny.model, PROMPT, STEPS)
    fading = (1.0, 0.5, 0.0, 0.0, 0.0)
    edits = [
        make_self_injection(tiny.model, source, fading, self_queries=64),
        make_self_injection(tiny.model, source, (1.0,) * STEPS, self_queries=16),
        None,
    ]
    jobs = [
        make_job(tiny.model, seed=n, steps=STEPS, self_injection=x) for n, x in enumerate(edits)
    ]
    together = last_z(tiny.model, *jobs)
    for found, job in zip(together, jobs, strict=True):
        assert_near(found, last_z(tiny.model, job)[0], 1e-11)
        if job.self_injection is not None:
            unedited = last_z(tiny.model, replace(job, self_injection=None))[0]
            assert (found - unedited).abs().max() > 1e-2


def test_models_without_small_layers_are_refused(tiny):
    source = make_source(tiny.model, PROMPT, STEPS)
    with pytest.raises(UserError, match="self_queries must be at least 16.*'tiny', got 15"):
        store_attention(tiny.model, [source], [], [0.3], batch=1, self_queries=15)


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
