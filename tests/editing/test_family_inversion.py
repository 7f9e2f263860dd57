"""Inversions for every family of models: the engine and diffusers reproduce what they found."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, SIZE, load_pipeline
from tiny import assert_near, uniform

from fastdigin.editing.attention_store import store_attention
from fastdigin.editing.inversion import InversionSettings, invert
from fastdigin.engine.sampler import StepFunctions, unrolled_forward
from fastdigin.engine.steps import BatchSteps
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.tasks.sources import edited_start

PROMPT = "a photo of a red sneaker"
STOCHASTIC = {"lcm": "scheduling_lcm", "sdxl-turbo": "scheduling_euler_ancestral_discrete"}


def inverted(folder, dtype=torch.float64, steps=3, **options):
    model = LatentDiffusion.load(str(folder), device="cpu", dtype=dtype)
    settings = InversionSettings(
        steps=steps,
        **{"guidance_scale": model.usual_guidance_scale, "null_text_steps": 2, **options},
    )
    (inversion,) = invert(model, [uniform(3, SIZE, SIZE)], [PROMPT], settings, batch=1)
    return model, settings, inversion


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in FAMILIES],
        ("sdxl", {"method": "negative-prompt"}),
        ("sdxl", {"method": "direct"}),
        ("sdxl", {"guidance_scale": 1.0}),
        ("sdxl-turbo", {"guidance_scale": 2.0}),
        ("sdxl-turbo", {"guidance_scale": 2.0, "method": "negative-prompt"}),
    ],
)
def test_the_engine_follows_the_trajectory(folder_of, name, options):
    """With the null text, pooled embeddings and noise that the inversion found."""
    model, settings, inversion = inverted(folder_of(name), **options)
    start = edited_start(model, PROMPT, inversion)
    job = SimpleNamespace(
        settings=settings, injection=None, self_injection=None, blending=None, **start
    )
    guided = model.has_null_branch(settings.guidance_scale)
    assert (start["null_text"] is not None) == guided
    assert (start["noise"] is not None) == (name in STOCHASTIC)
    run = unrolled_forward(
        StepFunctions(model),
        start["latents"][None],
        start["conditioning"].expand(1, 3, -1, -1),
        start["null_text"][None] if guided else None,
        BatchSteps(model, [job], torch.float64),
        1,
    )
    path = torch.stack([*(state[:, :4] for state in run.inputs), run.last], dim=1)[0]
    assert_near(path, inversion.trajectory, 1e-6)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_lets_diffusers_pipeline_reproduce_the_trajectory(folder_of, name, monkeypatch):
    import importlib

    model, settings, inversion = inverted(folder_of(name), torch.float32)
    pipeline = load_pipeline(folder_of(name))
    module = importlib.import_module(f"diffusers.schedulers.{STOCHASTIC[name]}")
    noise = iter(inversion.noise[:, None])
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(noise))
    z = inversion.trajectory[:1] / model.ddim_table(3).initial_scale
    last = pipeline(
        PROMPT, latents=z, num_inference_steps=3, output_type="latent",
        guidance_scale=settings.guidance_scale,
    ).images  # fmt: skip
    assert_near(last, inversion.trajectory[-1:], 1e-3)  # fp32, through a random network


@pytest.mark.parametrize("name", STOCHASTIC)
def test_each_latent_is_the_noised_image(folder_of, name):
    """Signal and noise as the scheduler itself adds them, with noise of unit variance."""
    model, _, inversion = inverted(folder_of(name))
    scheduler = type(model.scheduler).from_config(model.scheduler.config)
    scheduler.set_timesteps(3)
    noises = []
    for i, t in enumerate(scheduler.timesteps):
        nothing, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        signal = float(scheduler.add_noise(one, nothing, t[None]))
        noise = float(scheduler.add_noise(nothing, one, t[None]))
        unit = (signal**2 + noise**2) ** 0.5
        left = inversion.trajectory[i] - signal / unit * inversion.encoded
        noises.append(left / (noise / unit))
    flat = torch.stack(noises).flatten(1)
    assert flat.std(dim=1).sub(1).abs().max() < 0.15 and flat.mean(dim=1).abs().max() < 0.2
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.2


def test_an_inversion_is_the_same_every_time(folder_of):
    for first, second in zip(*(vars(inverted(folder_of("lcm"))[2]).values() for _ in range(2)),
                             strict=True):  # fmt: skip
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("name", ["sdxl", "lcm"])
def test_attention_is_recorded_with_what_the_time_embedding_is_told(folder_of, name, monkeypatch):
    model, _, inversion = inverted(folder_of(name))
    seen, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *args: seen.append(args[4]) or predict(*args))
    (store,) = store_attention(model, [inversion], [0.5], batch=1)
    pooled = model.encode_pooled([PROMPT])
    guidance = torch.full((1,), model.usual_guidance_scale, dtype=torch.float64)
    assert all(torch.equal(vector, model.vector(pooled, guidance)) for vector in seen)
    assert store.maps.shape[0] == model.text_length and len(seen) == 2
