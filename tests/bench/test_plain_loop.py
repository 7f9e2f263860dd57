"""The plain loop is the engine's yardstick: same gradients, same optimisations, same photos."""

from dataclasses import replace

import pytest
import torch
from tiny import (
    IMAGE_SHAPE,
    assert_near,
    build_classifier,
    make_blending,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    uniform,
)

import fastdigin as fd
from fastdigin_bench.gradients import engine_first_gradients
from fastdigin_bench.plain_loop import first_gradients, optimise, plain_total
from fastdigin_bench.plain_model import FusedAttention, MapAttention, PlainModel
from fastdigin_bench.plain_photo import counterfactual

FRONT, FADING = (1.0, 1.0, 0.0, 0.0), (1.0, 0.7, 0.25, 0.0)
EDITS = {
    "none": {},
    "unguided": {"guidance_scale": 1.0},
    "injected": {"injection": (FRONT, "queries")},
    "partly injected maps": {"injection": (FADING, "map")},
    "blended": {"blending": FRONT},
    "injected and blended": {"injection": (FADING, "queries"), "blending": FADING},
    "unguided, injected and blended": {
        "injection": (FRONT, "map"), "blending": FRONT, "guidance_scale": 1.0,
    },
    "other rates": {"last_steps": 1, "learning_rate": 0.03, "latent_lr_factor": 0.5},
}  # fmt: skip
CUTOUTS = fd.Cutouts(count=3)


def edited_job(model, injection=None, blending=None, **settings):
    """A job with random crops and a distance that edits some source."""
    source = make_source(model, "a photo of a red sneaker", steps=4)
    prompt = "a photo of a cat"
    losses = [
        fd.ClassConfidence(build_classifier().to(model.device, model.dtype), 1, cutouts=CUTOUTS),
        fd.Distance(uniform(*IMAGE_SHAPE, seed=9), weight=2.0),
    ]
    return make_job(
        model, prompt=prompt, seed=3, losses=losses,
        injection=injection and make_injection(model, source, prompt, *injection),
        blending=blending and make_blending(source, blending),
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tiny):
    return PlainModel(tiny.model)


@pytest.mark.parametrize("edit", EDITS)
def test_first_gradients(tiny, plain, edit):
    job = edited_job(tiny.model, **EDITS[edit])
    actual, expected = (
        first_gradients(plain, job), engine_first_gradients(fd.Engine(tiny.model, slots=1), job)
    )  # fmt: skip
    assert set(actual) == set(expected)
    assert ("null_text" in actual) == job.settings.guided
    for name, gradient in expected.items():
        assert_near(actual[name], gradient, 1e-8)


@pytest.mark.parametrize("edit", ["none", "unguided", "injected and blended", "other rates"])
def test_whole_optimisation(either, edit):
    job = edited_job(either.model, iterations=3, **EDITS[edit])
    job = replace(job, monitors={"red": lambda image: image[0].mean()})
    (expected,) = fd.Engine(either.model, slots=1).run([job])
    result = optimise(PlainModel(either.model), job)
    assert len(result.history) == 4 and result.seconds > 0
    for row, wanted in zip(result.history, expected.history, strict=True):
        assert row == pytest.approx(wanted, rel=1e-8)
    assert result.best_iteration == expected.best_iteration
    totals = [row["total"] for row in result.history]
    assert max(totals) - min(totals) > 1e-4, "nothing was optimised"
    for name in ("image", "initial_image", "latents", "conditioning"):
        assert_near(getattr(result, name), getattr(expected, name), 1e-8)


def test_a_counterfactual_from_the_photo(either):
    """Inversion, null text, masks, search and optimisation follow the task's."""
    mask = torch.zeros(16, 16)
    mask[4:12, 3:11] = 1
    settings = fd.presets.EXACT.of(fd.CounterfactualSettings(
        fd.Settings(steps=4, iterations=2), null_text_steps=3, injection_fractions=(0.25, 0.5),
        blending_fractions=(0.0, 0.3), cutouts=CUTOUTS,
    ))  # fmt: skip
    image = uniform(*IMAGE_SHAPE, seed=1)
    for item in (
        fd.ImageInput("auto", image, "a photo of a red sneaker on grass", "sneaker", "boot"),
        fd.ImageInput("own", image, "a blue bag", "bag", "sneaker", mask),
    ):
        task = fd.Counterfactuals(
            engine=fd.Engine(either.model, slots=1), photos=[item], classifier=build_classifier(),
            settings=settings, seed=5,
        )  # fmt: skip
        (record,) = task.run()
        expected, result = record.result, counterfactual(PlainModel(either.model), task)
        edit, wanted_edit = result.job.info, expected.job.info
        assert (edit.injected, edit.blended) == (wanted_edit.injected, wanted_edit.blended)
        source, wanted = edit.source, wanted_edit.source
        assert_near(source.inversion.trajectory, wanted.inversion.trajectory, 1e-7)
        assert_near(source.inversion.null_text, wanted.inversion.null_text, 1e-7)
        assert_near(source.mask, wanted.mask, 1e-6)  # the engine's maps are fp32 here
        for row, wanted_row in zip(result.history, expected.history, strict=True):
            assert row == pytest.approx(wanted_row, rel=1e-5, abs=1e-9)
        assert_near(result.image, expected.image, 1e-4)


def test_the_networks_are_diffusers_own(tiny):
    before = tiny.model.unet.attn_processors
    plain = PlainModel(tiny.model)
    for network in (plain.unet, plain.vae):
        kinds = {type(module).__module__.partition(".")[0] for module in network.modules()}
        assert kinds <= {"diffusers", "torch"}
    assert tiny.model.unet.attn_processors == before
    shared = dict(tiny.model.unet.named_parameters())
    for name, weight in plain.unet.named_parameters():
        assert weight.data_ptr() == shared[name].data_ptr() and not weight.requires_grad


def test_maps_are_written_where_a_job_injects(tiny, plain):
    for edit, kind in (("injected", MapAttention), ("none", FusedAttention)):
        plain_total(plain, edited_job(tiny.model, **EDITS[edit]))
        processors = plain.unet.attn_processors.items()
        assert {type(p) for name, p in processors if "attn2" in name} == {kind}
        assert {type(p) for name, p in processors if "attn1" in name} == {FusedAttention}


def test_blocks_are_checkpointed(tiny, plain):
    """Every block runs again in the backward, and nothing else would be in training mode."""
    calls = []
    resnet = plain.unet.down_blocks[0].resnets[0]
    hook = resnet.register_forward_pre_hook(lambda *_: calls.append(1))
    first_gradients(plain, edited_job(tiny.model))
    hook.remove()
    assert len(calls) == 2 * 4
    training = [module for module in plain.unet.modules() if module.training]
    assert training and all(hasattr(module, "gradient_checkpointing") for module in training)


def test_what_the_loop_does_not_know_is_refused(tiny, plain):
    with pytest.raises(ValueError, match="plain loop knows no Settings but steps"):
        optimise(plain, edited_job(tiny.model, schedule="cosine"))
    own = make_self_injection(tiny.model, make_source(tiny.model, "a bag", 4), (1.0, 0, 0, 0))
    with pytest.raises(ValueError, match="plain loop knows no Job with self_injection"):
        optimise(plain, replace(edited_job(tiny.model), self_injection=own))
