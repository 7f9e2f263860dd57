"""The diffusion model: what it is loaded with, and its parts."""

import pytest
import torch
from tiny import IMAGE_SHAPE, LATENT_SHAPE, assert_near, normal, uniform

from fastdigin.editing.prompts import phrase_tokens
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_embedded_model(dtype):
    model = LatentDiffusion.from_pretrained("embedded", device="cpu", dtype=dtype)
    assert model.latent_shape == (4, 16, 16) and model.name == "embedded"
    assert model.image_size == 64 and model.text_length == 16
    assert model.dtype == dtype and model.device.type == "cpu"
    assert {p.dtype for n in model.networks for p in n.parameters()} == {dtype}
    assert model.encode_prompts(["a bag"]).dtype == dtype


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


@pytest.mark.parametrize("prompt", ["\ud800", "a photo of a caf\udce9", "\udfff boot"])
def test_half_a_character_is_refused(tiny, prompt):
    """As in the name of a file that is not UTF-8."""
    for read in (tiny.model.tokenize, lambda text: phrase_tokens(tiny.model, text, "boot")):
        with pytest.raises(UserError, match="holds a lone surrogate, which is no text"):
            read(prompt)


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
