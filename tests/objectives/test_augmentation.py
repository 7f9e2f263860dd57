"""Random crops: what decides them, where they lie, and their noise."""

import pytest
import torch
from gradients import Called
from tiny import build_classifier, uniform

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample_crops
from fastdigin.objectives import augmentation
from fastdigin.objectives.augmentation import Cutouts, views

KEY = (7, 3, 1)


def crop_boxes(monkeypatch, cutouts, full, size):
    """(tops, lefts, sides) of the crops that the cutouts ask for."""
    boxes = []

    def spy(image, tops, lefts, sides, size):
        boxes.extend((tops, lefts, sides))
        return resample_crops(image, tops, lefts, sides, size)

    monkeypatch.setattr(augmentation, "resample_crops", spy)
    cutouts(uniform(3, full, full), size, KEY)
    return boxes


def test_crops_are_a_function_of_the_key_alone():
    """They neither depend on the global generator nor touch it."""
    image, cutouts = uniform(3, 24, 24), Cutouts(count=4)
    first = cutouts(image, 12, KEY)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(cutouts(image, 12, KEY), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in ((8, 3, 1), (7, 4, 1), (7, 3, 2), (73, 1, 1)):
        assert not torch.allclose(cutouts(image, 12, other), first, atol=1e-3)


def test_many_images_get_the_crops_that_each_gets_alone():
    images, keys = uniform(3, 3, 24, 24), [(7, 3, 1), (8, 3, 1), (7, 3, 2)]
    together = Cutouts(count=4).many(images, 12, keys)
    for image, key, crops in zip(images, keys, together, strict=True):
        assert torch.equal(Cutouts(count=4)(image, 12, key), crops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_precision_sees_the_same_crops_and_noise(dtype):
    image = uniform(3, 24, 24).to(dtype)
    exact = Cutouts(noise=0.1)(image.double(), 12, KEY)
    actual = Cutouts(noise=0.1)(image, 12, KEY)
    assert actual.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)


def test_sides_and_places(monkeypatch):
    tops, lefts, sides = crop_boxes(monkeypatch, Cutouts(count=4000, noise=0), full=16, size=8)
    assert sides.min() >= 8 and sides.max() <= 16
    assert abs(sides.median() - (8 + 8 * 0.5**0.3)) < 0.1
    for starts in (tops, lefts):
        assert starts.min() >= 0 and (starts + sides).max() <= 16
        share = starts / (16 - sides)
        assert abs(share.mean() - 0.5) < 0.02 and share.min() < 0.01 and share.max() > 0.99
    assert (
        abs(torch.corrcoef(torch.stack([tops / (16 - sides), lefts / (16 - sides)]))[0, 1]) < 0.05
    )


@pytest.mark.parametrize(("size", "smallest"), [(20, 20), (48, 48), (64, 48), (224, 48)])
def test_classifier_as_large_as_the_image_still_gets_different_crops(monkeypatch, size, smallest):
    # With a large power most sides are the smallest.
    sides = crop_boxes(monkeypatch, Cutouts(power=20.0, noise=0), full=64, size=size)[2]
    assert abs(sides.min() - smallest) < 1e-3
    default = crop_boxes(monkeypatch, Cutouts(noise=0), full=64, size=size)[2]
    assert default.std() > 0.5


def test_noise_has_its_standard_deviation():
    crops = Cutouts(count=64, noise=0.02)(torch.full((3, 24, 24), 0.5), 16, KEY)
    assert abs((crops - 0.5).std() - 0.02) < 5e-4


def test_all_crops_are_one_resampling():
    """Two matrix products there and two back, however many crops there are."""
    image = torch.rand(3, 32, 32, requires_grad=True)
    with Called() as called:
        torch.autograd.grad(Cutouts(count=16)(image, 12, KEY).sum(), image)
    assert sum(name in ("aten::mm", "aten::bmm") for name in called.names) == 4


def test_views_are_crops_or_the_plain_image_as_the_classifier_prepares_it():
    image, classifier = uniform(3, 24, 24), build_classifier()
    plain = classifier.prepare(image[None])
    assert plain.shape == (1, 3, 12, 12)
    assert torch.equal(views(image, classifier, None, KEY), plain)
    assert torch.equal(views(image, classifier, Cutouts(), None), plain)
    assert torch.equal(views(image, classifier, Cutouts(), KEY), Cutouts()(image, 12, KEY))


@pytest.mark.parametrize(
    "setting", [{"count": 0}, {"power": 0}, {"noise": -1}, {"min_fraction": 1.5}]
)
def test_impossible_settings(setting):
    with pytest.raises(UserError, match=str(next(iter(setting)))):
        Cutouts(**setting)
