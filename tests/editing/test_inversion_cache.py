"""Kept inversions: equal to fresh ones bit for bit, and taken for nothing else."""

from dataclasses import replace

import pytest
import torch
from tiny import build_tiny

from fastdigin.editing.inversion import InversionSettings, invert
from fastdigin.editing.inversion_cache import InversionCache

SETTINGS = InversionSettings(steps=3, null_text_steps=2)
PROMPTS = ["a photo of a red sneaker", "a blue bag on grass", "a cat"]
FIELDS = ("trajectory", "conditioning", "null_text", "encoded")


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.prompt == b.prompt
        for name in FIELDS:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or torch.equal(x, y), name
            assert x is None or x.stride() == y.stride(), name


@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(SETTINGS, guidance_scale=1.0)], ids=["guided", "unguided"]
)
def test_kept_inversions_equal_fresh_ones(tiny, images, tmp_path, rows, settings):
    expected = invert(tiny.model, images, PROMPTS, settings, batch=2)
    for attempt in range(2):
        cache, done = InversionCache(tiny.model, tmp_path), []
        rows.clear()
        found = cache.invert(images, PROMPTS, settings, batch=2, on_step=done.append)
        assert_same(found, expected)
        assert sum(done) == pytest.approx(3)
        assert (len(rows) == 0) == (attempt == 1)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": PROMPTS[1:2]},
        {"settings": replace(SETTINGS, steps=2)},
        {"settings": replace(SETTINGS, tolerance=1e-6)},
        {"settings": replace(SETTINGS, method="negative-prompt")},
        {"batch": 2},
        {"images": "another pixel"},
    ],
    ids=str,
)
def test_anything_else_is_inverted_itself(tiny, images, tmp_path, rows, change):
    given = {"images": images[:1], "prompts": PROMPTS[:1], "settings": SETTINGS, "batch": 1}
    cache = InversionCache(tiny.model, tmp_path)
    cache.invert(**given)
    rows.clear()
    cache.invert(**given)
    assert rows == [] and len(list(tmp_path.iterdir())) == 1
    if "images" in change:
        change = {"images": [images[0].clone()]}
        change["images"][0][0, 0, 0] += 1e-6
    cache.invert(**given | change)
    assert rows and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler", "scaling factor"])
def test_another_model_is_told_apart(tiny, images, tmp_path, part):
    InversionCache(tiny.model, tmp_path).invert(images[:1], PROMPTS[:1], SETTINGS, batch=1)
    other = build_tiny().model
    if part == "scheduler":
        other.scheduler = type(other.scheduler).from_config(other.scheduler.config, beta_end=0.013)
    elif part == "scaling factor":
        other.vae.register_to_config(scaling_factor=0.5)
    else:
        weight = next(getattr(other, part).parameters())
        weight[(0,) * weight.ndim] += 1e-3
    expected = invert(other, images[:1], PROMPTS[:1], SETTINGS, batch=1)
    found = InversionCache(other, tmp_path).invert(images[:1], PROMPTS[:1], SETTINGS, batch=1)
    assert_same(found, expected)
    assert len(list(tmp_path.iterdir())) == 2
