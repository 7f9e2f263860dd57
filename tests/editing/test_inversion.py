"""Inversion against a plain loop over one image, and on a packaged photo."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import (
    LATENT_SHAPE,
    assert_near,
    multistep_scheduler,
    normal,
    with_scheduler,
)

import fastdigin as fd
from fastdigin.editing.inversion import InversionSettings, ddim_inversion, invert
from fastdigin.embedded import photos
from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey
from fastdigin.engine.sampler import StepFunctions, unrolled_forward
from fastdigin.engine.steps import BatchSteps, whole_blocks
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
        ({"method": "direct"}, STEPS * 2, 0),  # both branches of a step in one call
    ],
    ids=str,
)
def test_unet_calls(tiny, images, rows, monkeypatch, options, expected, graphs):
    kept, original = [], StepFunctions.forward_with_graph
    monkeypatch.setattr(
        StepFunctions, "forward_with_graph", lambda *given: kept.append(1) or original(*given)
    )
    (inversion,) = invert(
        tiny.model, images[:1], PROMPTS[:1], InversionSettings(STEPS, **options), batch=1
    )
    assert (len(rows), len(kept)) == (expected, graphs)
    if expected == STEPS * (1 + 2):  # nothing was updated
        empty = tiny.model.encode_prompts([""])
        assert torch.equal(inversion.null_text, empty.expand(STEPS, -1, -1))


def last_latent(model, inversion, guidance, **changes):
    """(C, h, w), where the engine's sampler ends from the inversion's start."""
    job = fd.Job(
        "again", inversion.trajectory[0], inversion.conditioning, inversion.null_text, [],
        fd.Settings(steps=STEPS, guidance_scale=guidance), offsets=inversion.offsets,
    )  # fmt: skip
    job = replace(job, **changes)
    texts = (job.conditioning, job.null_text)
    texts = [x if x is None else x.expand(STEPS, -1, -1)[None] for x in texts]
    steps = BatchSteps(model, [job], torch.float64)
    return unrolled_forward(StepFunctions(model), job.latents[None], *texts, steps, 1).last[0]


DIRECT = {
    "noise, guided": ("tiny", 3.0),
    "noise, strongly guided": ("tiny", 7.5),
    "noise, unguided": ("tiny", 1.0),
    "velocity": ("tiny_v", 3.0),
    "velocity, strongly guided": ("tiny_v", 7.5),
    "multistep": ("multistep", 3.0),
}


@pytest.mark.parametrize("case", DIRECT)
def test_direct_inversion_returns_the_photos_own_latents(request, tiny, images, case):
    """Exactly, by construction: whatever the solver, the prediction and the guidance."""
    name, guidance = DIRECT[case]
    if name == "multistep":
        model = with_scheduler(tiny, multistep_scheduler()).model
    else:
        model = request.getfixturevalue(name).model
    settings = InversionSettings(STEPS, guidance, method="direct")
    found = invert(model, images[:2], PROMPTS[:2], settings, batch=2)
    for image, inversion in zip(images, found, strict=False):
        if guidance != 1:
            empty = model.encode_prompts([""]).expand_as(inversion.null_text)
            assert torch.equal(inversion.null_text, empty)
        own = model.encode_image(image)
        assert torch.equal(inversion.trajectory[-1], own)
        assert_near(last_latent(model, inversion, guidance), own, 1e-6)
        without = last_latent(model, inversion, guidance, offsets=None)
        assert (without - own).abs().max() > 1e-2, "the offsets do nothing"


@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_steps_give_the_same_inversion(tiny, images, batch):
    """By the aot_eager backend, one graph each of a step forward and of one with its gradients."""
    rows = len(whole_blocks(range(batch)))
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
        ({"method": "exact"}, "null-text, direct, negative-prompt, got 'exact'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(fd.UserError, match=message):
        InversionSettings(**setting)
