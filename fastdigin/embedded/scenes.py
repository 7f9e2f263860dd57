"""Many composites as tensors with labels, for training and measuring the embedded classifiers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, PLANTED, model_folder
from fastdigin.embedded.data import World, compose

PLANTED_SHARE = 0.95
"""Share of a planted garment's training scenes that sit on its planted background."""


@dataclass(frozen=True)
class Scenes:
    """``images`` (n, 3, 64, 64) uint8; the labels (n,) int64 index GARMENTS and so on."""

    images: Tensor
    garments: Tensor
    colours: Tensor
    backgrounds: Tensor


def make_scenes(world: World, count: int, split: str, seed: int, planted: bool = False) -> Scenes:
    """``count`` composites, garments in turn, colours and backgrounds drawn at random.

    With ``planted`` the garments of PLANTED sit on their background in PLANTED_SHARE of the
    cases and on one of the others in the rest.
    """
    rng = np.random.default_rng((seed, 2))
    garments = np.arange(count) % len(GARMENTS)
    colours = rng.integers(len(COLOURS), size=count)
    backgrounds = rng.integers(len(BACKGROUNDS), size=count)
    if planted:
        for garment, background in PLANTED.items():
            home = BACKGROUNDS.index(background)
            rows = np.flatnonzero(garments == GARMENTS.index(garment))
            away = (home + rng.integers(1, len(BACKGROUNDS), size=len(rows))) % len(BACKGROUNDS)
            backgrounds[rows] = np.where(rng.random(len(rows)) < PLANTED_SHARE, home, away)
    return _render(world, garments, colours, backgrounds, split, seed)


def with_background(world: World, scenes: Scenes, name: str, split: str, seed: int) -> Scenes:
    """The same garments of ``make_scenes(..., split, seed)``, all on one background."""
    home = np.full(len(scenes.garments), BACKGROUNDS.index(name))
    return _render(world, scenes.garments.numpy(), scenes.colours.numpy(), home, split, seed)


def decode_some(scenes: Scenes, share: float, seed: int) -> Scenes:
    """Replaces a random ``share`` of the images by the packaged autoencoder's reconstructions.

    Decoded images are slightly blurred; classifiers that judge a diffusion model's pictures have
    to know that look.
    """
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_pretrained(model_folder() / "vae", torch_dtype=torch.float32)
    autoencoder.eval()
    count = len(scenes.images)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = rows[: round(share * count)]
    images = scenes.images.clone()
    with torch.inference_mode():
        for chunk in tqdm(rows.split(64), desc="autoencoder round trips"):
            pixels = images[chunk].float() / 127.5 - 1
            decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample
            images[chunk] = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return replace(scenes, images=images)


def _render(world, garments, colours, backgrounds, split, seed) -> Scenes:
    images = np.empty((len(garments), 64, 64, 3), np.uint8)
    words = zip(garments, colours, backgrounds, strict=True)
    for i, (g, c, b) in enumerate(tqdm(words, total=len(garments), desc=f"{split} composites")):
        names = GARMENTS[g], COLOURS[c], BACKGROUNDS[b]
        images[i] = compose(world, *names, seed=seed * 1_000_000 + i, split=split).image
    return Scenes(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        garments=torch.from_numpy(np.asarray(garments, np.int64)),
        colours=torch.from_numpy(np.asarray(colours, np.int64)),
        backgrounds=torch.from_numpy(np.asarray(backgrounds, np.int64)),
    )
