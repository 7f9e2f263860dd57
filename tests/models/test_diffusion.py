"""The diffusion model: what it is loaded with, and its parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import IMAGE_SHAPE, LATENT_SHAPE, assert_near, normal, uniform

from fastdigin.embedded import model_folder
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged model."""
    return Path(shutil.copytree(model_folder(), tmp_path / "model"))


def test_the_embedded_model(embedded):
    assert embedded.latent_shape == (4, 16, 16)
    assert embedded.image_size == 64 and embedded.text_length == 16
    assert embedded.dtype == torch.float32 and embedded.device.type == "cpu"
    assert embedded.name == "embedded"
    assert {p.dtype for n in embedded.networks for p in n.parameters()} == {torch.float32}


def test_another_dtype(folder):
    model = LatentDiffusion.from_pretrained(str(folder), device="cpu", dtype=torch.float64)
    assert model.dtype == torch.float64
    assert {p.dtype for n in model.networks for p in n.parameters()} == {torch.float64}
    assert model.encode_prompts(["a bag"]).dtype == torch.float64


def test_another_scheduler_becomes_ddim(folder):
    """Folders often name another solver; its noise schedule and prediction type are kept."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True,
               "prediction_type": "v_prediction", "beta_end": 0.02}  # fmt: skip
    path.write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = LatentDiffusion.from_pretrained(str(folder), device="cpu")
    assert type(model.scheduler).__name__ == "DDIMScheduler"
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert model.scheduler.config.beta_end == 0.02
    assert len(model.ddim_table(5)) == 5


def test_prompts_are_encoded_one_by_one(tiny):
    """As the text encoder itself does; neighbours do not change a bit."""
    prompts = ["a photo of a red sneaker", "", "a cat"]
    together = tiny.model.encode_prompts(prompts)
    assert together.shape == (3, 16, 16) and not together.requires_grad
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(tiny.model.encode_prompts([prompt])[0], row)
        ids = tiny.pipe.tokenizer(
            prompt, padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        assert_near(row[None], tiny.pipe.text_encoder(ids)[0].detach(), 1e-12)


def test_long_prompts_are_refused_not_cut(tiny):
    longest = " ".join(["a"] * 14)
    assert len(tiny.model.tokenize(longest)) == 16
    with pytest.raises(UserError, match="takes 17 tokens, the text encoder reads 16: shorten it"):
        tiny.model.tokenize(longest + " a")


def test_encoding_and_decoding_equal_the_vae(tiny):
    image, vae = uniform(*IMAGE_SHAPE), tiny.pipe.vae
    expected = vae.encode(image[None] * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert_near(tiny.model.encode_image(image), expected[0], 1e-12)
    latents = normal(2, *LATENT_SHAPE).requires_grad_()
    images = tiny.model.decode(latents)
    expected = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert images.shape == (2, *IMAGE_SHAPE)
    assert_near(images, expected, 1e-12)
    gradient, truth = (
        torch.autograd.grad(x.square().sum(), latents)[0] for x in (images, expected)
    )
    assert_near(gradient, truth, 1e-12)


def test_predict_takes_a_timestep_per_sample(tiny):
    z, text = normal(2, *LATENT_SHAPE), tiny.model.encode_prompts(["a bag", "a boot"])
    both = tiny.model.predict(z, torch.tensor([900, 1]), text)
    for b, t in enumerate((900, 1)):
        single = tiny.model.predict(z[b : b + 1], torch.tensor([t]), text[b : b + 1])
        assert_near(both[b : b + 1], single, 1e-12)


def test_shapes(tiny):
    assert tiny.model.latent_shape == LATENT_SHAPE
    assert tiny.model.image_size == 16 and tiny.model.text_length == 16
