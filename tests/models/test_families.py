"""Every family of models against diffusers' own pipeline, from the files on disk."""

import re
from dataclasses import replace

import diffusers
import pytest
import torch
from families import FAMILIES, SIZE, load_pipeline
from tiny import assert_near, normal

from fastdigin.editing.prompts import phrase_tokens
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.engine.sampler import StepFunctions, unrolled_forward
from fastdigin.engine.steps import BatchSteps
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import Distance
from fastdigin.tasks.generated import generated_job

PROMPT = "a photo of a red sneaker on grass"
# name: (solver, steps, guidance scale, few-step, pooled width)
EXPECTED = {
    "sd1": ("DDIMScheduler", 20, 3.0, False, 0),
    "sd2": ("DDIMScheduler", 20, 3.0, False, 0),
    "sd2-v": ("DDIMScheduler", 20, 3.0, False, 0),
    "multistep": ("DPMSolverMultistepScheduler", 20, 3.0, False, 0),
    "sdxl": ("EulerDiscreteScheduler", 20, 3.0, False, 12),
    "sd-turbo": ("EulerDiscreteScheduler", 4, 1.0, True, 0),
    "sdxl-turbo": ("EulerAncestralDiscreteScheduler", 4, 1.0, True, 12),
    "lcm": ("LCMScheduler", 4, 8.5, True, 0),
}


def load(folder, dtype=torch.float32, **options):
    return LatentDiffusion.from_pretrained(str(folder), device="cpu", dtype=dtype, **options)


def job_of(model, **settings):
    """One that leads to a black image."""
    return generated_job(
        model, id="job", prompt=PROMPT, losses=[Distance(torch.zeros(3, SIZE, SIZE))],
        settings=Settings(**settings), seed=0,
    )  # fmt: skip


def sampled(model, prompt, steps, guidance_scale, seed):
    """The last latent of a generated job."""
    settings = Settings(steps=steps, guidance_scale=guidance_scale)
    job = generated_job(model, id="job", prompt=prompt, losses=[], settings=settings, seed=seed)
    texts = [
        text[None, None].expand(1, steps, -1, -1) for text in (job.conditioning, job.null_text)
    ]
    if not model.has_null_branch(guidance_scale):
        texts[1] = None
    constants = BatchSteps(model, [job], torch.float32)
    return unrolled_forward(StepFunctions(model), job.latents[None], *texts, constants, 1).last


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_sampler_equals_the_pipeline(folder_of, name, steps):
    """From prompt and seed: tokens, embeddings, z_T, the solver and the noise it draws."""
    guidance = EXPECTED[name][2]
    expected = load_pipeline(folder_of(name))(
        PROMPT, num_inference_steps=steps, guidance_scale=guidance, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert_near(sampled(load(folder_of(name)), PROMPT, steps, guidance, 3), expected, 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_gives_the_model_of_its_folder_and_stays_as_it_is(folder_of, name):
    """diffusers' pipeline draws the same before and after, and keeps its trainable layers."""
    pipeline = load_pipeline(folder_of(name), keep_scheduler=True)
    model, expected = LatentDiffusion.from_pipe(pipeline), load(folder_of(name))
    assert model.name == str(folder_of(name))
    assert type(model.scheduler) is type(expected.scheduler)
    assert model.scheduler.config == expected.scheduler.config
    for ours, theirs in zip(model.networks, expected.networks, strict=True):
        for a, b in zip(ours.modules(), theirs.modules(), strict=True):
            assert type(a) is type(b)
        assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    steps, guidance = model.usual_steps, model.usual_guidance_scale
    latents = [sampled(m, PROMPT, steps, guidance, 3) for m in (model, expected)]
    assert torch.equal(*latents)
    assert torch.equal(model.decode(latents[0]), expected.decode(latents[0]))

    untouched = load_pipeline(folder_of(name), keep_scheduler=True)
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert all(p.requires_grad for p in network.parameters())
    images = [
        p(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(3),
          output_type="pt").images
        for p in (pipeline, untouched)
    ]  # fmt: skip
    assert torch.equal(*images)


def test_a_pipelines_weights_are_shared(folder_of):
    pipeline = load_pipeline(folder_of("sd1"))
    model = LatentDiffusion.from_pipe(pipeline)
    for name in ("unet", "vae", "text_encoder"):
        theirs = dict(getattr(pipeline, name).named_parameters())
        for key, weight in getattr(model, name).named_parameters():
            assert weight.ndim == 4 or weight.data_ptr() == theirs[key].data_ptr()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"in_channels": 9}, "in_channels is 9, and only models with 4"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
    ],
)
def test_relatives_of_another_kind(folder_of, part, change, message):
    pipeline = load_pipeline(folder_of("sd1"))
    getattr(pipeline, part).register_to_config(**change)
    with pytest.raises(UserError, match=message):
        LatentDiffusion.from_pipe(pipeline)


def test_pipelines_that_cannot_be_used(folder_of):
    pipeline = load_pipeline(folder_of("sd1"))
    other = diffusers.StableDiffusionInpaintPipeline(
        **pipeline.components, requires_safety_checker=False
    )
    with pytest.raises(UserError, match="is a StableDiffusionInpaintPipeline; only StableDiff"):
        LatentDiffusion.from_pipe(other)
    with pytest.raises(UserError, match="pipe is a NoneType; only StableDiffusionPipeline"):
        LatentDiffusion.from_pipe(None)
    pipeline.vae.decoder._hf_hook = object()
    with pytest.raises(UserError, match="moves its vae between devices: call pipe.remove_all"):
        LatentDiffusion.from_pipe(pipeline)
    pipeline.vae = diffusers.AutoencoderTiny()
    with pytest.raises(UserError, match="its vae is a AutoencoderTiny, and only AutoencoderKL"):
        LatentDiffusion.from_pipe(pipeline)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kind_is_read_from_the_files(folder_of, name):
    model = load(folder_of(name))
    solver, steps, guidance, few_step, pooled = EXPECTED[name]
    assert type(model.scheduler).__name__ == solver
    assert (model.usual_steps, model.usual_guidance_scale) == (steps, guidance)
    assert model.few_step == few_step and model.pooled_width == pooled
    assert model.embeds_guidance == (name == "lcm")
    assert model.has_null_branch(7.5) == (name != "lcm") and not model.has_null_branch(1.0)
    assert model.image_size == SIZE and model.latent_shape == (4, 8, 8)
    assert len(model.networks) == (4 if pooled else 3)
    assert (model.encode_pooled([PROMPT]) is None) == (not pooled)
    stochastic = name in ("sdxl-turbo", "lcm")
    table = model.ddim_table(4)
    assert (table.noise is not None) == (table.inverse is None) == stochastic


@pytest.mark.parametrize("name", ["sdxl", "sdxl-turbo", "lcm"])
def test_gradients_equal_finite_differences(folder_of, name):
    """Through the pooled embedding's, the guidance scale's and the noise's constants."""
    model = load(folder_of(name), torch.float64)
    engine = Engine(model, slots=1, kept_steps=0)
    z, cond = normal(1, 4, 8, 8), model.encode_prompts([PROMPT])
    pooled = model.encode_pooled([PROMPT, ""])
    constants = {
        "pooled": None if pooled is None else pooled[None],
        "noise": normal(1, 2, 4, 8, 8, seed=7) if name != "sdxl" else None,
        "steps": 2,
    }
    weight = normal(1, 4, 8, 8, seed=5)
    directions = normal(*z.shape, seed=1), normal(*cond.shape, seed=2)

    def value(h):
        moved = (x + h * d for x, d in zip((z, cond), directions, strict=True))
        return (engine.sample(*moved, **constants) * weight).sum()

    variables = z.clone().requires_grad_(), cond.clone().requires_grad_()
    (engine.sample(*variables, **constants) * weight).sum().backward()
    slope = sum((v.grad * d).sum() for v, d in zip(variables, directions, strict=True))
    with torch.no_grad():
        expected = (value(1e-6) - value(-1e-6)) / 2e-6
    assert_near(slope, expected, 1e-5)


def test_a_scheduler_that_is_swapped_is_heard(folder_of):
    """Also after the first call; the truth is diffusers' pipeline with the same one."""
    model, pipeline = load(folder_of("sd1")), load_pipeline(folder_of("sd1"))
    sampled(model, PROMPT, 4, 3.0, 3)
    for scheduler in (
        diffusers.EulerDiscreteScheduler.from_config(model.scheduler.config),
        diffusers.DDIMScheduler.from_config(model.scheduler.config, beta_end=0.02),
    ):
        model.scheduler = pipeline.scheduler = scheduler
        expected = pipeline(
            PROMPT, num_inference_steps=4, guidance_scale=3.0, output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip
        assert_near(sampled(model, PROMPT, 4, 3.0, 3), expected, 1e-5)
    model.scheduler.register_to_config(beta_end=0.03)
    assert not torch.allclose(sampled(model, PROMPT, 4, 3.0, 3), expected, rtol=1e-3)
    with pytest.raises(UserError, match="is a DDIMInverseScheduler"):
        model.scheduler = diffusers.DDIMInverseScheduler()


@pytest.mark.parametrize("name", ["my-turbo", "model"])
def test_only_a_model_that_says_so_is_distilled(folder_of, name, caplog):
    parts = {part: getattr(load(folder_of("sd-turbo")), part) for part in (
        "unet", "vae", "text_encoder", "tokenizer", "scheduler")}  # fmt: skip
    caplog.clear()
    parts["unet"].register_to_config(_name_or_path="")
    model = LatentDiffusion(**parts, name=name)
    assert model.few_step == (name == "my-turbo")
    expected = (4, 1) if model.few_step else (20, 3)
    assert (model.usual_steps, model.usual_guidance_scale) == expected
    assert ("does not say that it is one" in caplog.text) != model.few_step


def test_steps_and_guidance_of_a_sample_default_to_the_models(folder_of):
    model = load(folder_of("lcm"))
    z, cond = normal(1, 4, 8, 8).float(), model.encode_prompts([PROMPT])
    noise = normal(1, 4, 4, 8, 8, seed=1).float()
    usual = Engine(model, slots=1).sample(z, cond, noise=noise)
    given = Engine(model, slots=1).sample(z, cond, noise=noise, steps=4, guidance_scale=8.5)
    other = Engine(model, slots=1).sample(z, cond, noise=noise, steps=4, guidance_scale=4.0)
    assert torch.equal(usual, given) and not torch.allclose(usual, other, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sdxl", {"pooled": None}, "pooled is None, but model .* needs \\(2, 12\\)"),
        ("sdxl", {"pooled": torch.zeros(12)}, "pooled is of shape \\(12,\\)"),
        ("sd1", {"pooled": torch.zeros(2, 12)}, "pooled is of shape \\(2, 12\\), .* needs None"),
        ("sd1", {"noise": torch.zeros(4, 4, 8, 8)}, "wanted None: the model's solver adds no"),
        ("lcm", {"noise": torch.zeros(3, 4, 8, 8)}, "wanted \\(4, 4, 8, 8\\)"),
        ("sd-turbo", {"settings": Settings(4, 0.0)}, "write 1 here: no guidance"),
    ],
)
def test_jobs_that_do_not_fit_the_family(folder_of, name, changes, message):
    model = load(folder_of(name))
    job = job_of(model, steps=4, guidance_scale=model.usual_guidance_scale, iterations=0)
    bad, good = Engine(model, slots=1, kept_steps=0).run([replace(job, **changes), job])
    assert (bad.status, good.status) == ("failed", "done")
    assert re.search(message, bad.error)


def test_another_size(folder_of):
    model = load(folder_of("sdxl"), size=64)
    assert model.image_size == 64 and model.latent_shape == (4, 16, 16)
    pooled = model.encode_pooled([PROMPT, ""])
    assert model.vector(pooled[:1], torch.ones(1))[0, -6:].tolist() == [64, 64, 0, 0, 64, 64]
    z, cond = normal(1, 4, 16, 16).float(), model.encode_prompts([PROMPT])
    x0 = Engine(model, slots=1).sample(z, cond, steps=1, pooled=pooled[None])
    assert model.decode(x0).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [0, 8, 40, -16])
def test_sizes_that_the_unet_cannot_halve(folder_of, size):
    with pytest.raises(UserError, match=f"size must be a multiple of 16 pixels .* got {size}"):
        load(folder_of("sd1"), size=size)


@pytest.mark.parametrize(
    ("unet", "vae", "side"),
    [([8, 8], 512, 32), (None, 32, 32), (None, [32, 32], None), ([8, 12], 32, None)],
)
def test_sizes_that_are_a_list_or_null(folder_of, unet, vae, side):
    pipeline = load_pipeline(folder_of("sd1"))
    pipeline.unet.register_to_config(sample_size=unet)
    pipeline.vae.register_to_config(sample_size=vae)
    assert LatentDiffusion.from_pipe(pipeline, size=48).image_size == 48
    if side is None:
        with pytest.raises(UserError, match="does not say at which square size .*: give size"):
            LatentDiffusion.from_pipe(pipeline)
    else:
        assert LatentDiffusion.from_pipe(pipeline).image_size == side


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_tokenizers_that_do_not_know_their_length(folder_of, name):
    pipeline = load_pipeline(folder_of(name))
    expected = LatentDiffusion.from_pipe(pipeline).encode_prompts([PROMPT])
    for part in ("tokenizer", "tokenizer_2"):
        if hasattr(pipeline, part):
            getattr(pipeline, part).model_max_length = 10**30
    model = LatentDiffusion.from_pipe(pipeline)
    assert model.text_length == 16 and torch.equal(model.encode_prompts([PROMPT]), expected)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_words_of_textual_inversion(folder_of, name):
    """Loaded into the pipeline they are words; known to the tokenizer alone they are refused."""
    pipeline = load_pipeline(folder_of(name))
    prompt = "a photo of <my-cat> on grass"
    pipeline.tokenizer.add_tokens(["<my-cat>"])
    with pytest.raises(UserError, match="has '<my-cat>', for which the text encoder"):
        LatentDiffusion.from_pipe(pipeline).encode_prompts([prompt])
    pipeline = load_pipeline(folder_of(name))
    pipeline.load_textual_inversion({"<my-cat>": torch.randn(2, 16)}, token="<my-cat>")
    model = LatentDiffusion.from_pipe(pipeline)
    expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    assert_near(model.encode_prompts([prompt]), expected.detach(), 1e-5)
    assert phrase_tokens(model, prompt, "<my-cat>") == [4, 5]
    assert phrase_tokens(model, prompt, "on") == [6]


def test_a_mark_that_is_the_pad_token_is_a_word_of_its_own(folder_of):
    pipeline = load_pipeline(folder_of("sd1"))
    pipeline.tokenizer.pad_token = "!"
    model = LatentDiffusion.from_pipe(pipeline)
    assert phrase_tokens(model, "a bag! on grass", "on") == [4]
    assert phrase_tokens(model, "a bag!! on grass", "bag") == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("overflows", [False, True])
def test_an_autoencoder_that_overflows_in_fp16_runs_in_fp32(folder_of, dtype, overflows, caplog):
    pipeline = load_pipeline(folder_of("sd1"))
    if overflows:  # what follows the first convolution is normalised
        with torch.no_grad():
            weight = pipeline.vae.decoder.conv_in.weight
            weight *= 6e4 / weight.abs().max()
    pipeline.to(dtype)
    caplog.set_level("INFO")
    model = LatentDiffusion.from_pipe(pipeline)
    upcast = overflows and dtype is torch.float16
    assert model.dtype == dtype and model.vae.dtype == (torch.float32 if upcast else dtype)
    assert ("overflows in fp16" in caplog.text) == upcast
    assert model.decode(normal(1, 4, 8, 8).float()).isfinite().all()


@pytest.mark.parametrize("tensor", ["conv_in", "up_blocks.1.resnets.0.conv1"])
def test_an_autoencoder_that_overflows_later_is_named_as_the_cause(folder_of, tensor):
    """After the trial at loading; at the start of the decoder, or later in it."""
    model = LatentDiffusion.from_pretrained(str(folder_of("sd1")), device="cpu", dtype="fp16")
    with torch.no_grad():
        weight = model.vae.decoder.get_submodule(tensor).weight
        weight.copy_(weight.sign() * 6e4)
    (result,) = Engine(model, slots=1, kept_steps=0).run([job_of(model, steps=1, iterations=1)])
    assert "the decoded image is not finite; where the VAE runs in fp16" in result.error


@pytest.mark.parametrize("low", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_pipelines_of_mixed_types(folder_of, name, low):
    """A whole job, beside the one in single precision."""
    totals = []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = load_pipeline(folder_of(name))
        getattr(pipeline, low).to(dtype)
        model = LatentDiffusion.from_pipe(pipeline)
        assert getattr(model, low).dtype == dtype and model.state_dtype == torch.float32
        (result,) = Engine(model, slots=1, kept_steps=0).run([job_of(model, steps=2, iterations=1)])
        assert result.status == "done", result.error
        totals += [row["total"] for row in result.history]
    assert totals[2:] == pytest.approx(totals[:2], rel=0.05)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_autoencoder_of_sdxl_stays_in_single_precision(folder_of, name):
    model = load(folder_of(name), torch.float16)
    assert model.dtype == torch.float16
    assert model.vae.dtype == (torch.float32 if name == "sdxl" else torch.float16)
    assert load(folder_of(name), torch.bfloat16).vae.dtype == torch.bfloat16
