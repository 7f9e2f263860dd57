"""From attention to the prompts of a segmenter, and from its masks to foregrounds."""

import logging

import pytest
import torch
from tiny import uniform

from fastdigin.editing.segmentation import Segmentation, quantile_box, spread_points
from fastdigin.errors import UserError
from fastdigin.models.segmenter import Prompt
from fastdigin.storage import TensorCache

SIZE = 32


class Squares:
    """A segmenter whose mask is a square around each point, or the box."""

    name, fingerprint = "squares", "weights"

    def __init__(self):
        self.seen: list[Prompt] = []

    def masks(self, images, prompts):
        self.seen += prompts
        return [self._mask(prompt) for prompt in prompts]

    def _mask(self, prompt):
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for x, y in prompt.points.int().tolist() if prompt.points is not None else ():
            mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
        if prompt.box is not None:
            left, top, right, bottom = prompt.box.int().tolist()
            mask[top : bottom + 1, left : right + 1] = True
        return mask


def bar(top, bottom, left, right, value=1.0):
    attention = torch.zeros(SIZE, SIZE)
    attention[top:bottom, left:right] = value
    return attention


IMAGES = [uniform(3, SIZE, SIZE, seed=s).float() for s in range(2)]


FAINT_AND_FAR = torch.zeros(SIZE, SIZE)
FAINT_AND_FAR[0, 0], FAINT_AND_FAR[0, 20], FAINT_AND_FAR[0, 31] = 1.0, 0.9, 0.4


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [
        # On a bar of even attention: one end, the other end, the middle between them.
        (bar(10, 11, 4, 29), 3, [[4, 10], [28, 10], [16, 10]]),
        # A faint far pixel loses against a likely one that is nearer.
        (FAINT_AND_FAR, 2, [[0, 0], [20, 0]]),
        (FAINT_AND_FAR, 9, [[0, 0], [20, 0], [31, 0]]),
    ],
)
def test_points_spread_over_likely_pixels(weights, count, expected):
    assert spread_points(weights, count).tolist() == expected


def test_the_box_leaves_stray_pixels_out():
    likely = bar(8, 24, 4, 12) > 0
    assert quantile_box(likely).tolist() == [4, 8, 11, 23]
    likely[31, 31] = True
    left, top, right, bottom = quantile_box(likely).tolist()
    assert (left, right) == (4, 11) and top == 8 and bottom == 23


@pytest.mark.parametrize("prompt", ["points", "box"])
def test_foregrounds(prompt):
    attention = [bar(8, 24, 4, 12), bar(8, 12, 20, 28)]
    segmenter = Squares()
    found = Segmentation(segmenter, prompt).foregrounds(IMAGES, attention)
    for mask, expected in zip(found, attention, strict=True):
        assert mask.shape == (SIZE, SIZE) and set(mask.unique().tolist()) == {0.0, 1.0}
        if prompt == "box":
            assert torch.equal(mask, expected)
        assert mask[expected > 0].any()
    kinds = [(p.points is not None, p.box is not None) for p in segmenter.seen]
    assert kinds == [(prompt == "points", prompt == "box")] * 2


def test_attention_takes_over(caplog):
    """Where it marks no place to look at, and where the segmenter finds nothing there."""
    faint, clear = bar(8, 24, 4, 12, value=0.2), bar(8, 24, 4, 12)
    segmenter = Squares()
    with caplog.at_level(logging.WARNING):
        (found,) = Segmentation(segmenter).foregrounds(IMAGES[:1], [faint])
        assert torch.equal(found, faint) and not segmenter.seen
        segmenter.masks = lambda images, prompts: [torch.zeros(SIZE, SIZE, dtype=torch.bool)]
        (found,) = Segmentation(segmenter).foregrounds(IMAGES[:1], [clear])
    assert torch.equal(found, clear)
    assert caplog.text.count("attention mask is used instead") == 2


def test_masks_are_kept(tmp_path):
    """By image, prompt and weights."""
    attention = [bar(8, 24, 4, 12), bar(8, 12, 20, 28)]
    cache = TensorCache(tmp_path)
    expected = Segmentation(Squares()).foregrounds(IMAGES, attention)
    for calls in (2, 0):
        segmenter = Squares()
        found = Segmentation(segmenter, masks=cache).foregrounds(IMAGES, attention)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert len(segmenter.seen) == calls
    other = Squares()
    other.fingerprint = "other weights"
    Segmentation(other, masks=cache).foregrounds(IMAGES[:1], attention[:1])
    Segmentation(other, "box", masks=cache).foregrounds(IMAGES[:1], attention[:1])
    Segmentation(other, masks=cache).foregrounds(IMAGES[1:], attention[:1])
    Segmentation(other, masks=cache).foregrounds(IMAGES[:1], attention[1:])
    assert len(other.seen) == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"prompt": "boxes"}, "points or box, got 'boxes'"), ({"points": 0}, "at least 1, got 0")],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        Segmentation(Squares(), **setting)
