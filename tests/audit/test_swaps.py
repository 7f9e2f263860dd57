"""Swaps change one attribute, as independent networks and the pixels tell, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastdigin import embedded
from fastdigin.audit import embedded_attributes
from fastdigin.audit.photos import read_photos
from fastdigin.audit.search import PROMPT
from fastdigin.audit.swaps import masked_swap, measure_effects
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput


@pytest.fixture(scope="module")
def read():
    photos = embedded.photos()[:96]
    items = [ImageInput(p.id, p.path, source=p.garment, mask=p.mask_path) for p in photos]
    return read_photos(Classifier.load("embedded:clean"), items, embedded_attributes(), PROMPT, 64)


def test_photos_are_read_without_being_told(read):
    for photo, truth in zip(read, embedded.photos(), strict=False):
        assert photo.features == {"background": truth.background, "colour": truth.colour}
        assert photo.prompt == truth.prompt


@pytest.mark.parametrize("attribute", embedded_attributes(), ids=lambda a: a.name)
def test_a_swap_changes_one_attribute_alone(read, attribute):
    other = next(a for a in embedded_attributes() if a.name != attribute.name)
    swap = masked_swap(attribute, read)
    kept = (lambda m: m == 1) if attribute.region == "background" else (lambda m: m == 0)
    for photo in read[::17]:
        for feature in attribute.features:
            image = swap(photo, feature)
            assert attribute.read(image[None]) == [feature]
            assert other.read(image[None]) == [photo.features[other.name]]
            same = kept(photo.mask)
            assert torch.equal(image[:, same], photo.image[:, same])


def test_a_prompt_for_attributes_that_are_not_asked_about_is_refused():
    photo = embedded.photos()[0]
    items = [ImageInput(photo.id, photo.path, source=photo.garment)]
    background = embedded_attributes()[:1]
    with pytest.raises(UserError, match="asks for 'colour': write {object} and {background}"):
        read_photos(Classifier.load("embedded:clean"), items, background, PROMPT, 64)


def test_without_a_mask_or_a_donor_there_is_no_swap(read):
    background, colour = embedded_attributes()
    bare = replace(read[0], mask=None)
    assert masked_swap(background, read)(bare, "grass") is None
    assert masked_swap(colour, read)(bare, "red") is None
    own = read[0].features["background"]
    other = next(f for f in background.features if f != own)
    assert masked_swap(background, [read[0]])(read[0], other) is None


@pytest.mark.parametrize("attribute", embedded_attributes(), ids=lambda a: a.name)
def test_a_feature_that_no_photo_lends_leaves_the_others_to_be_measured(read, attribute):
    """Else nothing at all would be found, without a word."""
    gone = attribute.features[-1]
    photos = [photo for photo in read if photo.features[attribute.name] != gone][:40]
    robust = Classifier.load("embedded:robust")
    swap = masked_swap(attribute, photos)
    effects = measure_effects(robust, attribute, photos[:8], 1, swap)
    assert set(effects) == set(attribute.features) - {gone}
    assert all(effect.photos == 8 for effect in effects.values())

    def rarely(photo, feature):  # as where a diffusion model fails at one of them
        return (
            None
            if feature == attribute.features[0] and photo is not photos[0]
            else (swap(photo, feature))
        )

    assert set(measure_effects(robust, attribute, photos[:8], 1, rarely)) == set(
        attribute.features[1:-1]
    )
    assert measure_effects(robust, attribute, photos[:8], 1, lambda *_: None) == {}


def test_effects_by_hand(read):
    """A network that says "second" by the share of green in the picture: grass, and only grass."""

    class Green(nn.Module):
        def forward(self, x):
            green = (x[:, 1] > x[:, 0] + 0.05) & (x[:, 1] > x[:, 2] + 0.05)
            z = 20 * green.float().mean(dim=(1, 2)) - 5
            return torch.stack([-z, z], dim=1)

    green = Classifier(Green(), size=64, mean=(0,) * 3, std=(1,) * 3, classes=("first", "second"))
    background, _ = embedded_attributes()
    effects = measure_effects(green, background, read[:8], 1, masked_swap(background, read))
    assert effects["grass"].mean > 0.8 and effects["grass"].photos == 8
    assert effects["grass"].rival == "first"
    assert all(effects[f].mean < 0 for f in background.features if f != "grass")
    means = effects["grass"].by_feature
    by_hand = means["grass"] - sum(means[f] for f in ("brick", "gravel", "plain")) / 3
    assert effects["grass"].mean == pytest.approx(by_hand, abs=1e-6)
    swap = masked_swap(background, read)
    for photo, gain in zip(read[:8], effects["grass"].gains, strict=True):
        seen = {f: float(green.probabilities(swap(photo, f)[None])[0, 1]) for f in means}
        grass = seen.pop("grass")
        assert gain == pytest.approx(grass - sum(seen.values()) / 3, abs=1e-5)
    for feature, (image, confidence) in effects["grass"].example.items():
        assert background.read(image[None]) == [feature]
        assert confidence == pytest.approx(float(green.probabilities(image[None])[0, 1]))
