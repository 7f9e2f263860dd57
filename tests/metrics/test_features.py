"""Distances of sets and likeness of pairs, against scipy and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from fastdigin.metrics.features import (
    cosine_distance,
    cosines,
    diversity,
    frechet_distance,
    jackknifed,
    kernel_distance,
    split_frechet_distances,
)


def features(n, d, seed, shift=0.0):
    mixed = torch.randn(d, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn @ mixed + shift


def by_scipy(real, fake):
    a, b = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    means = real.mean(dim=0) - fake.mean(dim=0)
    return float(means.square().sum()) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 50, 6), (40, 70, 6), (9, 70, 6)])
def test_frechet_distance_is_that_of_scipy(n, m, d):
    real, fake = features(n, d, 1), features(m, d, 2, shift=0.5)
    assert frechet_distance(real, fake) == pytest.approx(by_scipy(real, fake), rel=1e-9)


def test_frechet_distance_with_fewer_samples_than_features():
    """By hand: all samples on one axis, where it is (m - n)^2 + (s - t)^2."""
    real, fake = torch.zeros(2, 40), torch.zeros(3, 40)
    real[:, 5], fake[:, 5] = torch.tensor([0.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    assert frechet_distance(real, fake) == pytest.approx(3.0**2 + (2**0.5 - 1) ** 2, rel=1e-9)
    assert frechet_distance(fake, fake) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(real[:1], fake)


def test_kernel_distance_is_that_of_its_definition():
    real, fake = features(4, 6, 1), features(3, 6, 2, shift=0.5)
    x, y = real.numpy(), fake.numpy()

    def k(a, b):
        return (a @ b / 6 + 1) ** 3

    own = [np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
           for s in (x, y)]  # fmt: skip
    definition = sum(own) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(real, fake) == pytest.approx(definition, rel=1e-9)


def test_split_distances_compare_with_the_explanations_of_other_photos():
    real, fake = features(20, 3, 1), features(20, 3, 2)
    fake[[2, 11]] = torch.nan  # these do not count
    rng, expected = np.random.default_rng(0), []
    for _ in range(10):
        order = rng.permutation(20)
        for mine, others in ((order[:10], order[10:]), (order[10:], order[:10])):
            others = [n for n in others if n not in (2, 11)]
            expected.append(by_scipy(real[mine], fake[others]))
    assert split_frechet_distances(real, fake) == pytest.approx(expected, rel=1e-9)
    # A method that changes nothing looks perfect to FID alone.
    assert frechet_distance(real, real) < 1e-9 < 0.1 < min(split_frechet_distances(real, real))


def test_cosines_and_diversity_by_hand():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert cosines(x, x.roll(1, 0)) == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    distances = [1 - 0.5**0.5, 1.0, 1 - 0.5**0.5]
    assert diversity(list(x), cosine_distance) == pytest.approx(sum(distances) / 3)
    assert diversity([x[0]], cosine_distance) is None


def test_the_jackknife_of_a_mean_is_students_interval_of_the_groups_means():
    values = torch.arange(40, dtype=torch.float64).square()
    value, (low, high) = jackknifed(lambda which: float(values[which].mean()), 40)
    order = np.random.default_rng(0).permutation(40) % 10
    groups = [values[torch.from_numpy(order == g)].mean().item() for g in range(10)]
    expected = stats.t.interval(0.95, 9, np.mean(groups), stats.sem(groups))
    assert value == values.mean() and (low, high) == pytest.approx(expected, rel=1e-3)
    assert jackknifed(lambda which: 1.0, 19) == (1.0, None)

    def few(which):  # a figure that needs more cases than are left without one group
        if len(which) < 40:
            raise ValueError("too few")
        return 2.0

    assert jackknifed(few, 40) == (2.0, None)
