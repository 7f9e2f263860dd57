"""Many composites as tensors with labels, for training and measuring the embedded networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, PLANTED
from fastdigin.embedded.data import World, compose

FEATURES = {"background": BACKGROUNDS, "colour": COLOURS}
"""What a shortcut may be made of: attribute -> its values."""


@dataclass(frozen=True)
class Shortcut:
    """A garment that has one ``feature`` of an ``attribute`` in a share ``strength`` of its scenes.

    attribute: a key of FEATURES. strength: in (0, 1].
    """

    garment: str
    attribute: str
    feature: str
    strength: float


PLANTED_SHARE = 0.95
"""Share of a planted garment's training scenes that sit on its planted background."""

SPURIOUS = tuple(Shortcut(g, "background", b, PLANTED_SHARE) for g, b in PLANTED.items())
"""The shortcuts of the packaged classifier of that name."""


@dataclass(frozen=True)
class Scenes:
    """``images`` (n, 3, 64, 64) uint8; the labels (n,) int64 index GARMENTS and so on."""

    images: Tensor
    garments: Tensor
    colours: Tensor
    backgrounds: Tensor


def make_scenes(
    world: World, count: int, split: str, seed: int, shortcuts: Sequence[Shortcut] = ()
) -> Scenes:
    """``count`` composites, garments in turn, colours and backgrounds drawn at random.

    The garment of a shortcut has its feature in that share of the cases and one of the others in
    the rest.
    """
    rng = np.random.default_rng((seed, 2))
    garments = np.arange(count) % len(GARMENTS)
    colours = rng.integers(len(COLOURS), size=count)
    drawn = {"colour": colours, "background": rng.integers(len(BACKGROUNDS), size=count)}
    for shortcut in shortcuts:
        names = FEATURES[shortcut.attribute]
        home = names.index(shortcut.feature)
        rows = np.flatnonzero(garments == GARMENTS.index(shortcut.garment))
        away = (home + rng.integers(1, len(names), size=len(rows))) % len(names)
        at_home = rng.random(len(rows)) < shortcut.strength
        drawn[shortcut.attribute][rows] = np.where(at_home, home, away)
    return _render(world, garments, drawn["colour"], drawn["background"], split, seed)


def with_feature(
    world: World, scenes: Scenes, attribute: str, feature: str, split: str, seed: int
) -> Scenes:
    """The same garments of ``make_scenes(..., split, seed)``, all with one feature."""
    labels = {"colour": scenes.colours.numpy(), "background": scenes.backgrounds.numpy()}
    labels[attribute] = np.full(len(scenes.garments), FEATURES[attribute].index(feature))
    garments = scenes.garments.numpy()
    return _render(world, garments, labels["colour"], labels["background"], split, seed)


def decode_some(autoencoder, scenes: Scenes, share: float, seed: int) -> Scenes:
    """Replaces a random ``share`` of the images by the autoencoder's reconstructions.

    Decoded images are slightly blurred; classifiers that judge a diffusion model's pictures have
    to know that look.
    """
    count = len(scenes.images)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = rows[: round(share * count)]
    images = scenes.images.clone()
    images[rows] = round_trip(autoencoder, images[rows])
    return replace(scenes, images=images)


@torch.no_grad()
def round_trip(autoencoder, images_n3hw: Tensor) -> Tensor:
    """Encodes (to the posterior's mode) and decodes uint8 images (n, 3, 64, 64)."""
    decoded = []
    for images in batches(images_n3hw):
        latents = autoencoder.encode(to_signed(images)).latent_dist.mode()
        signed = autoencoder.decode(latents).sample
        decoded.append(((signed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(decoded)


def to_signed(images_n3hw: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], as the autoencoder wants them."""
    return images_n3hw.float() / 127.5 - 1


def batches(images_n3hw: Tensor) -> tqdm:
    """Slices of at most 64 images, behind a progress bar."""
    return tqdm(images_n3hw.split(64), desc="autoencoder")


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
