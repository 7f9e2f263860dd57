"""Inversion against a plain loop over one image, and on a packaged photo."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from tiny import IMAGE_SHAPE, LATENT_SHAPE, assert_near, normal

from fastdigin.editing.inversion import InversionSettings, ddim_inversion, invert
from fastdigin.embedded import photos
from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Settings
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.steps import padded
from fastdigin.errors import UserError
from fastdigin.objectives import Distance
from fastdigin_bench import plain_photo
from fastdigin_bench.plain_model import PlainModel

STEPS = 4
PROMPTS = ["a photo of a red sneaker", "a blue bag on grass", "a cat"]


def test_ddim_inversion_equals_the_plain_loop(tiny):
    z, cond = normal(2, *LATENT_SHAPE), tiny.model.encode_prompts(PROMPTS[:2])
    upward = ddim_inversion(StepFunctions(tiny.model), z, cond, STEPS)
    assert upward.shape == (2, STEPS + 1, *LATENT_SHAPE)
    for b in range(2):
        expected = plain_photo.ddim_inversion(
            PlainModel(tiny.model), z[b][None], cond[b][None], STEPS
        )
        assert_near(upward[b], torch.cat(expected), 1e-9)
    assert torch.equal(upward[:, -1], z)


# Some timesteps of these images come this near in time, some do not.
PACED = InversionSettings(STEPS, null_text_steps=6, learning_rate=0.05, tolerance=0.6)


def test_null_text_optimisation_equals_the_plain_loop(tiny, images):
    """Images side by side, each with as many updates as it makes alone."""
    # Four, which is a whole block of rows: no image is repeated to fill the batch.
    images, prompts = [*images, images[0]], [*PROMPTS, PROMPTS[0]]
    found = invert(tiny.model, images, prompts, PACED, batch=4)
    paces, plain = set(), PlainModel(tiny.model)
    for image, prompt, inversion in zip(images, prompts, found, strict=True):
        expected = plain_photo.invert(plain, image, prompt, PACED)
        assert_near(inversion.trajectory, expected.trajectory, 1e-6)
        assert_near(inversion.null_text, expected.null_text, 1e-6)
        assert torch.equal(inversion.encoded, tiny.model.encode_image(image))
        assert torch.equal(inversion.conditioning, tiny.model.encode_prompts([prompt])[0])
        assert inversion.prompt == prompt
        steps = inversion.null_text.diff(dim=0).abs().amax(dim=(1, 2))
        paces.add(tuple((steps > 0).tolist()))  # the steps that needed updates
    assert len(paces) > 1, "the images keep the same pace: nothing is tested"


@pytest.mark.parametrize(
    ("options", "expected", "graphs"),
    [
        ({"tolerance": 1e9}, STEPS * (1 + 2), STEPS),  # upwards; conditional and null once a step
        ({"null_text_steps": 0}, STEPS * (1 + 2), 0),
        # The prediction after the last update needs no graph.
        ({"null_text_steps": 3, "tolerance": 0.0}, STEPS * (1 + 1 + 4), STEPS * 3),
        ({"guidance_scale": 1.0}, STEPS * 2, 0),
        ({"method": "negative-prompt"}, STEPS * 2, 0),
    ],
    ids=str,
)
def test_unet_calls(tiny, images, calls, monkeypatch, options, expected, graphs):
    kept, record = [], StepFunctions.record
    monkeypatch.setattr(StepFunctions, "record", lambda *given: kept.append(1) or record(*given))
    (inversion,) = invert(
        tiny.model, images[:1], PROMPTS[:1], InversionSettings(STEPS, **options), batch=1
    )
    assert (len(calls), len(kept)) == (expected, graphs)
    if expected == STEPS * (1 + 2):  # nothing was updated
        empty = tiny.model.encode_prompts([""])
        assert torch.equal(inversion.null_text, empty.expand(STEPS, -1, -1))


@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_steps_give_the_same_inversion(tiny, images, batch):
    """By the aot_eager backend, one graph each of a step forward and of one with its gradients."""
    rows = len(padded(range(batch)))
    functions = CompiledStepFunctions(tiny.model, [rows], "aot_eager")
    found, expected = (
        invert(tiny.model, images[:batch], PROMPTS[:batch], PACED, batch=batch, functions=each)
        for each in (functions, None)
    )
    for actual, plain in zip(found, expected, strict=True):
        assert_near(actual.trajectory, plain.trajectory, 1e-9)
        assert_near(actual.null_text, plain.null_text, 1e-9)
    assert dict(functions.graphs) == {
        GraphKey(role, rows, guided=False, injected=False): 1 for role in ("forward", "kept")
    }


def test_an_inversion_does_not_depend_on_its_neighbours(tiny, images):
    """Any place in the batch, any neighbours, alone in a padded batch: bit for bit."""
    done = []

    def inverted(order, batch=4):
        found = invert(
            tiny.model, [images[n] for n in order], [PROMPTS[n] for n in order], PACED,
            batch=batch, on_step=done.append,
        )  # fmt: skip
        assert len(found) == len(order)
        return list(zip(order, found, strict=True))

    expected = dict(inverted([0, 1, 2]))
    for order in ([2, 0, 1], [1], [1, 1, 0, 2], [0, 1, 2, 2, 1, 0]):
        done.clear()
        for n, inversion in inverted(order):
            for name in ("trajectory", "null_text", "conditioning", "encoded"):
                a, e = getattr(inversion, name), getattr(expected[n], name)
                assert torch.equal(a, e), (order, n, name)
        assert sum(done) == pytest.approx(len(order))  # the progress, in images


@pytest.mark.parametrize("method", ["null-text", "negative-prompt"])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_the_engine_follows_the_trajectory(either, images, guidance, method):
    """Sampling from z_T with the null texts found ends where the inversion says."""
    settings = InversionSettings(STEPS, guidance, null_text_steps=2, method=method)
    (inversion,) = invert(either.model, images[:1], PROMPTS[:1], settings, batch=1)
    assert (inversion.null_text is None) == (guidance == 1)
    either.pipe.scheduler.set_timesteps(STEPS)
    null = inversion.null_text if guidance != 1 else [None] * STEPS
    last, x0s = reference.sample(
        either.pipe.unet, either.pipe.scheduler, inversion.trajectory[:1],
        [inversion.conditioning[None]] * STEPS, [n if n is None else n[None] for n in null],
        guidance,
    )  # fmt: skip
    assert_near(last, inversion.trajectory[-1:], 1e-9)
    job = Job(
        "again", inversion.trajectory[0], inversion.conditioning, inversion.null_text,
        [Distance(torch.zeros(IMAGE_SHAPE))],
        Settings(steps=STEPS, guidance_scale=guidance, iterations=0),
    )  # fmt: skip
    (result,) = Engine(either.model, slots=1).run([job])
    assert_near(result.image, either.model.decode(x0s[-1])[0], 1e-9)


def test_a_photo_is_reconstructed(embedded):
    """Null-text optimisation brings the guided sample back to the photo."""
    photo = photos()[18]
    pixels = np.array(Image.open(photo.path).convert("RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def error(null_text_steps, guidance=3.0):
        settings = InversionSettings(10, guidance, null_text_steps)
        (inversion,) = invert(embedded, [image], [photo.prompt], settings, batch=1)
        difference = inversion.trajectory[-1] - inversion.encoded
        return float(difference.square().mean() / inversion.encoded.var())

    optimised, plain, unguided = error(10), error(0), error(0, guidance=1.0)
    assert unguided < 0.05
    assert optimised < 0.05
    assert optimised < plain / 2


def test_negative_prompt_inversion_makes_guidance_cancel(tiny, images):
    """Its null text is the prompt, and its sample the one without guidance (Miyake et al.)."""
    found = {
        guidance: invert(
            tiny.model, images[:2], PROMPTS[:2],
            InversionSettings(STEPS, guidance, method="negative-prompt"), batch=2,
        )
        for guidance in (1.0, 7.5)
    }  # fmt: skip
    for plain, guided, prompt in zip(found[1.0], found[7.5], PROMPTS, strict=False):
        assert torch.equal(guided.trajectory, plain.trajectory)
        own = tiny.model.encode_prompts([prompt])
        assert torch.equal(guided.null_text, own.expand(STEPS, -1, -1))
        assert plain.null_text is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"null_text_steps": -1}, "null_text_steps must be at least 0, got -1"),
        ({"method": "exact"}, "null-text, negative-prompt, got 'exact'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UserError, match=message):
        InversionSettings(**setting)
