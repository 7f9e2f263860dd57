"""The composites: deterministic, split, and with masks that tell the truth."""

import numpy as np
import pytest
import torch

from fastdigin.embedded import BACKGROUNDS, GARMENTS, PLANTED
from fastdigin.embedded.data import compose, load_world
from fastdigin.embedded.scenes import PLANTED_SHARE, SPURIOUS, Shortcut, make_scenes, with_feature
from fastdigin.errors import UserError


def test_missing_data_names_the_mend(tmp_path):
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        load_world(tmp_path)


def test_world_is_split(world):
    assert set(world.garments["train"]) == set(world.garments["test"]) == set(GARMENTS)
    assert all(len(pictures) == 6000 for pictures in world.garments["train"].values())
    assert all(len(pictures) == 1000 for pictures in world.garments["test"].values())
    for name in world.textures["train"]:
        rows = [len(world.textures[split][name]) for split in ("train", "test")]
        assert rows == [352, 160]


def test_same_arguments_same_pixels(world):
    first = compose(world, "bag", "red", "brick", seed=5)
    again = compose(world, "bag", "red", "brick", seed=5)
    other = compose(world, "bag", "red", "brick", seed=6)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("garment", GARMENTS)
def test_background_changes_only_outside_the_mask(world, garment):
    composites = [
        compose(world, garment, "blue", name, seed=3, split="test") for name in BACKGROUNDS
    ]
    mask = composites[0].mask
    for other in composites[1:]:
        assert np.array_equal(mask, other.mask)
        difference = np.abs(composites[0].image.astype(int) - other.image.astype(int)).max(axis=2)
        assert difference[mask == 255].max() == 0
        assert difference[mask == 0].mean() > 20


@pytest.mark.parametrize("garment", GARMENTS)
def test_colour_changes_only_inside_the_mask(world, garment):
    red, blue = (compose(world, garment, colour, "grass", seed=9) for colour in ("red", "blue"))
    difference = np.abs(red.image.astype(int) - blue.image.astype(int)).max(axis=2)
    assert difference[red.mask == 0].max() == 0
    assert difference[red.mask == 255].mean() > 40
    assert 0.04 < (red.mask > 127).mean() < 0.6


def test_planted_scenes_have_the_planted_share(world):
    scenes = make_scenes(world, 2400, "train", seed=2, shortcuts=SPURIOUS)
    for garment, background in PLANTED.items():
        rows = scenes.garments == GARMENTS.index(garment)
        share = (scenes.backgrounds[rows] == BACKGROUNDS.index(background)).float().mean().item()
        assert abs(share - PLANTED_SHARE) < 0.06
    boots = scenes.backgrounds[scenes.garments == GARMENTS.index("boot")]
    assert (boots.bincount(minlength=4) / len(boots)).min() > 0.15


def test_a_colour_is_planted_and_swapped_alone(world):
    planted = [Shortcut("bag", "colour", "red", 1.0), Shortcut("bag", "background", "grass", 1.0)]
    scenes = make_scenes(world, 64, "test", seed=3, shortcuts=planted)
    bags = scenes.garments == GARMENTS.index("bag")
    assert (scenes.colours[bags] == 0).all() and (scenes.backgrounds[bags] == 0).all()
    assert len(scenes.colours[~bags].unique()) > 3
    blue = with_feature(world, scenes, "colour", "blue", "test", seed=3)
    assert (blue.colours == 1).all() and torch.equal(blue.backgrounds, scenes.backgrounds)
    # The corners show the background alone.
    assert torch.equal(blue.images[..., :4, :4], scenes.images[..., :4, :4])
    assert not torch.equal(blue.images[bags], scenes.images[bags])
