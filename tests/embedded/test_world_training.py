"""The training loop's resumption, the autoencoder's normalisation, the pipeline that is written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from fastdigin.embedded import (
    BACKGROUNDS,
    COLOURS,
    GARMENTS,
    prompt,
    training,
)
from fastdigin.embedded import train_autoencoder as ta
from fastdigin.embedded import train_diffusion as td
from fastdigin.embedded.make_tokenizer import make_tokenizer
from fastdigin.embedded.scenes import Scenes, round_trip
from fastdigin.embedded.train import main
from fastdigin.errors import UserError

SCHEDULE = training.Schedule(steps=8, rate=1e-2, warmup=2)


def toy(monkeypatch, work, stop_after=None, seed=0, schedule=SCHEDULE):
    """Trains a line through noise; ``stop_after`` interrupts as Ctrl-C would."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 3)
    torch.manual_seed(1)
    model, calls = nn.Linear(3, 1), 0

    def loss_of(model, generator):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=generator)
        return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return training.train("toy", model, loss_of, schedule, work, seed)


@pytest.mark.parametrize("stop_after", [2, 3, 7])
def test_an_interrupted_training_ends_with_the_same_weights(monkeypatch, tmp_path, stop_after):
    whole = toy(monkeypatch, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        toy(monkeypatch, tmp_path / "parts", stop_after)
    parts = toy(monkeypatch, tmp_path / "parts")
    assert torch.equal(whole.weight, parts.weight) and torch.equal(whole.bias, parts.bias)
    rows = [
        json.loads(line)
        for line in (tmp_path / "parts" / "toy.jsonl").read_text().split("\n")
        if line
    ]
    assert rows[-1]["step"] == 8
    again = toy(monkeypatch, tmp_path / "parts", stop_after=0)
    assert torch.equal(again.weight, whole.weight), "a finished training is only read"


@pytest.mark.parametrize("change", [{"seed": 1}, {"schedule": replace(SCHEDULE, rate=2e-2)}])
def test_a_foreign_checkpoint_is_refused(monkeypatch, tmp_path, change):
    toy(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="another schedule, seed or network"):
        toy(monkeypatch, tmp_path, **change)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="toy is nan at step 0"):
        training.train(
            "toy",
            nn.Linear(1, 1),
            lambda model, _: model(torch.full((1, 1), torch.nan)).sum(),
            SCHEDULE,
            tmp_path,
            seed=0,
        )


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
    tokenizer = make_tokenizer(tmp_path)
    assert {"vocab.json", "merges.txt"} <= {file.name for file in tmp_path.iterdir()}
    for garment in GARMENTS:
        for colour in COLOURS:
            for background in BACKGROUNDS:
                text = prompt(garment, colour, background)
                pieces = tokenizer.tokenize(text)
                assert [piece.removesuffix("</w>") for piece in pieces] == text.split()
    assert len(tokenizer.tokenize("skirt")) > 1
    padded = tokenizer("a red boot", padding="max_length")["input_ids"]
    assert len(padded) == 16 and padded[5:] == [tokenizer.eos_token_id] * 11


def test_diffusion_trains_and_writes_a_pipeline_for_diffusers(monkeypatch, tmp_path):
    monkeypatch.setattr(td, "BATCH", 2)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    torch.manual_seed(0)
    autoencoder = ta.build_autoencoder().eval().requires_grad_(False)
    index = torch.arange(4)
    scenes = Scenes(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), index, index, index)
    cached = td.cache_latents(autoencoder, tokenizer, scenes)
    assert cached.mean.shape == cached.deviation.shape == (4, 4, 16, 16)
    words = tokenizer.decode(cached.tokens[1], skip_special_tokens=True)
    assert words.strip() == prompt(GARMENTS[1], COLOURS[1], BACKGROUNDS[1])

    schedule = replace(td.SCHEDULE, steps=2)
    networks = td.train_diffusion(cached, autoencoder, tokenizer, tmp_path / "work", 0, schedule)
    assert (tmp_path / "work" / "diffusion-00002.png").stat().st_size > 1000
    td.save_model(autoencoder, tokenizer, networks, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", torch_dtype=torch.float32
    )
    image = pipeline("a photo of a red boot on grass", num_inference_steps=2, output_type="np")
    assert np.isfinite(image.images).all() and image.images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["shoes"], "STAGE 'shoes' is unknown; choose from autoencoder"),
        (["--data", "nowhere"], "--data 'nowhere' has no train-images-idx3-ubyte.gz"),
        (["--download"], "--download needs --data"),
        (["photos", "diffusion"], "run the stage autoencoder first"),
    ],
)
def test_the_command_refuses_bad_input(world, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
