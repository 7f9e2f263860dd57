"""Distances of pictures, attributes and COUT, by hand and by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdigin.metrics.distances import masked_l1, masked_l2
from fastdigin.metrics.features import changed_attributes, correlation_difference, cout


def test_distances_are_those_of_numpy():
    a, b = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.linspace(0, 1, 30).view(6, 5)
    error = np.abs(a.double().numpy() - b.double().numpy())
    weights = np.broadcast_to(mask.double().numpy(), error.shape)
    assert masked_l1(a, b) == pytest.approx(error.mean(), rel=1e-5)
    assert masked_l2(a, b) == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert masked_l1(a, b, mask) == pytest.approx(np.average(error, weights=weights), rel=1e-5)
    square = np.average(error**2, weights=weights)
    assert masked_l2(a, b, mask) == pytest.approx(np.sqrt(square), rel=1e-5)
    for covered in (0, 0.9):  # less than a pixel is no region, and None no difference of 0
        nothing = covered * (mask == 1).float()
        assert masked_l1(a, b, nothing) is masked_l2(a, b, nothing) is None
    assert masked_l1(a, b, (mask == 1).float()) > 0


def test_changed_attributes_by_hand():
    before = torch.tensor([[0.9, 0.1, 0.4], [0.2, 0.6, 0.7]])
    after = torch.tensor([[0.4, 0.1, 0.6], [0.3, 0.9, 0.8]])
    assert changed_attributes(before, after) == [2, 0]


def test_correlation_difference_is_that_of_numpy():
    generator = torch.Generator().manual_seed(0)
    photos, before, after = (torch.rand(n, 4, generator=generator) for n in (40, 30, 30))
    after[:, 3] = before[:, 3]
    hard = [(x > 0.5).double().numpy() for x in (photos, before, after)]
    changes = hard[2] - hard[1]
    expected = sum(
        abs(np.corrcoef(hard[0][:, 1], hard[0][:, a])[0, 1]
            - np.corrcoef(changes[:, 1], changes[:, a])[0, 1])
        for a in range(3)
    )  # fmt: skip
    # The fourth attribute never changes: its correlation is 0, as nothing goes along with it.
    expected += abs(np.corrcoef(hard[0][:, 1], hard[0][:, 3])[0, 1])
    assert correlation_difference(photos, before, after, 1) == pytest.approx(expected, rel=1e-9)


def share_of_white(images):
    """Classes "dark" and "white": the latter by twice the share of white pixels, at most 1."""
    white = (2 * images.mean(dim=(1, 2, 3))).clamp(max=1)
    return torch.stack([1 - white, white], dim=1)


def any_white(images):
    white = (images.amax(dim=(1, 2, 3)) > 0.5).float()
    return torch.stack([1 - white, white], dim=1)


def test_cout_by_hand():
    """Half of 100 black pixels turn white; they go first, two at a time."""
    before, after = torch.zeros(3, 10, 10), torch.zeros(3, 10, 10)
    after[:, 3:8] = 1
    # The difference of probabilities goes from -1 to 1 over the first half: its area is 0.
    assert cout(before, after, share_of_white, 0, 1) == pytest.approx(0.5)
    # Here it jumps with the first pixels: all but one of 50 steps.
    assert cout(before, after, any_white, 0, 1) == pytest.approx(0.98)
    assert cout(before, after, any_white, 1, 0) == pytest.approx(-0.98)


def test_cout_puts_in_the_most_changed_pixels_first():
    before, after = torch.zeros(3, 10, 10), torch.full((3, 10, 10), 0.1)
    after[:, 9, 9] = 1
    assert cout(before, after, any_white, 0, 1) == pytest.approx(0.98)
