"""Difference pictures, and what cannot be one."""

import re

import pytest
import torch

from fastdigin.results import difference_picture, to_pil
from fastdigin.results.pictures import MEANINGS


def colour(before, after):
    picture = difference_picture(*(torch.tensor(c).float()[:, None, None] for c in (before, after)))
    assert picture.shape == (3, 1, 1)
    return tuple((picture[:, 0, 0] * 255).round().int().tolist())


def test_difference_shows_size_and_direction():
    assert colour((0.3, 0.3, 0.3), (0.3, 0.3, 0.3)) == MEANINGS["unchanged"]
    assert colour((0, 0, 0), (1, 1, 1)) == MEANINGS["brighter"]
    assert colour((1, 1, 1), (0, 0, 0)) == MEANINGS["darker"]
    # More red and less green, at equal luma.
    shift = colour((0.1, 0.5, 0.5), (0.9, 0.5 - 0.8 * 0.299 / 0.587, 0.5))
    assert shift == pytest.approx(MEANINGS["another colour"], abs=1)
    assert sum(colour((0.5,) * 3, (0.55,) * 3)) < sum(colour((0.5,) * 3, (0.7,) * 3))


def test_difference_is_finite_and_in_range():
    before, after = torch.rand(3, 16, 16), torch.rand(3, 16, 16, requires_grad=True)
    picture = difference_picture(before, after)
    assert picture.min() >= 0 and picture.max() <= 1 and not picture.requires_grad


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 3, 8, 8)])
def test_to_pil_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"\(3,H,W\).*" + re.escape(str(shape))):
        to_pil(torch.rand(shape))
