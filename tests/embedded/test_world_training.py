"""The training loop, the autoencoder's normalisation, the pipeline that is written."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, prompt, training
from fastdigin.embedded import train_autoencoder as ta
from fastdigin.embedded import train_diffusion as td
from fastdigin.embedded.scenes import Scenes, round_trip
from fastdigin.embedded.train import main

SCHEDULE = training.Schedule(steps=8, rate=1e-2, warmup=2)


def test_the_same_seed_gives_the_same_weights():
    def toy(seed):
        torch.manual_seed(1)
        x = torch.ones(4, 3)

        def loss_of(model, generator):
            return (model(x * torch.randn(4, 3, generator=generator)) - 1).square().mean()

        return training.train("toy", nn.Linear(3, 1), loss_of, SCHEDULE, seed).weight

    assert torch.equal(toy(0), toy(0)) and not torch.equal(toy(0), toy(1))


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(FloatingPointError, match="toy is nan at step 0"):
        training.train("toy", nn.Linear(1, 1), lambda m, _: m.weight.sum() * torch.nan, SCHEDULE, 0)


def test_the_rate_rises_stays_and_falls():
    schedule = training.Schedule(steps=100, rate=2.0, warmup=10, flat=0.5)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[10:51] == [2.0] * 41
    assert rates[75] == pytest.approx(1.0) and 0 < rates[99] < 0.01


def test_normalised_latents_decode_to_the_same_pictures():
    torch.manual_seed(0)
    model = ta.build_autoencoder().eval()
    with torch.no_grad():
        model.quant_conv.weight *= torch.tensor([3.0, 1, 0.5, 2, 1, 1, 1, 1]).view(8, 1, 1, 1)
        model.quant_conv.bias += torch.tensor([1.0, -2, 0, 0, -4, -4, -4, -4])
    images = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8)
    before = round_trip(model, images)
    with torch.no_grad():
        posterior = model.encode(ta.to_signed(images)).latent_dist
    ta.normalise_latents(model, images)
    with torch.no_grad():
        after = model.encode(ta.to_signed(images)).latent_dist
    assert (before.int() - round_trip(model, images).int()).abs().max() <= 1
    assert after.mean.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (after.mean.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-5
    ratio = (posterior.std / after.std).mean(dim=(0, 2, 3))
    torch.testing.assert_close(ratio, posterior.mean.std(dim=(0, 2, 3)))


def test_every_word_of_the_world_is_one_token(tmp_path):
    tokenizer = td.make_tokenizer(tmp_path)
    for words in itertools.product(GARMENTS, COLOURS, BACKGROUNDS):
        pieces = tokenizer.tokenize(prompt(*words))
        assert [piece.removesuffix("</w>") for piece in pieces] == prompt(*words).split()
    assert len(tokenizer.tokenize("skirt")) > 1
    padded = tokenizer("a red boot", padding="max_length")["input_ids"]
    assert len(padded) == 16 and padded[5:] == [tokenizer.eos_token_id] * 11


def test_diffusion_trains_and_writes_a_pipeline_for_diffusers(monkeypatch, tmp_path):
    monkeypatch.setattr(td, "BATCH", 2)
    tokenizer = td.make_tokenizer(tmp_path / "tokenizer")
    autoencoder = ta.build_autoencoder().eval().requires_grad_(False)
    index = torch.arange(4)
    scenes = Scenes(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), index, index, index)
    cached = td.cache_latents(autoencoder, tokenizer, scenes)
    assert cached.mean.shape == cached.deviation.shape == (4, 4, 16, 16)
    words = tokenizer.decode(cached.tokens[1], skip_special_tokens=True)
    assert words.strip() == prompt(GARMENTS[1], COLOURS[1], BACKGROUNDS[1])
    networks = td.train_diffusion(cached, tokenizer, 0, replace(td.SCHEDULE, steps=2))
    td.assemble(autoencoder, tokenizer, networks).save_pretrained(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    image = pipeline("a photo of a red boot on grass", num_inference_steps=2, output_type="np")
    assert np.isfinite(image.images).all() and image.images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere"], "--data 'nowhere' has no train-images-idx3-ubyte.gz"),
        (["--stages", "photos", "diffusion"], "run the stage autoencoder first"),
    ],
)
def test_the_command_refuses_bad_input(world, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
