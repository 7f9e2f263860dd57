"""What networks make of pictures: distances of sets, likeness of pairs, diversity, attributes.

All functions take features, which any network may have made; sums are in fp64.
"""

from collections.abc import Callable
from itertools import combinations
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

SPLITS = 10
"""Random splits of sFID."""

SAME = 0.5
"""FVA: two faces whose features have a larger cosine are of one person."""

COUT_STEPS = 50

_GROUPS = 10
_STUDENT = 2.262
"""97.5% of Student's t with _GROUPS - 1 degrees of freedom."""
_ROWS = 1024


def frechet_distance(real_nd: Tensor, fake_md: Tensor) -> float:
    """FID of two sets of features: |difference of means|^2 + tr(A + B - 2 (A B)^(1/2)).

    A and B are the covariances (over n - 1). The last trace is the sum of the singular values of
    a product of their factors, which needs no root of a matrix that is not symmetric, and no more
    than n features squared. With few samples the value is too large: compare equal n only.

    Raises:
        ValueError: a set has less than two samples.

    Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    (mean, real), (other, fake) = _moments(real_nd), _moments(fake_md)
    cross = torch.linalg.svdvals(real @ fake.T).sum()
    spread = real.square().sum() + fake.square().sum() - 2 * cross
    return float((mean - other).square().sum() + spread)


def kernel_distance(real_nd: Tensor, fake_md: Tensor) -> float:
    """KID: the unbiased squared MMD with the kernel (x y / d + 1)^3, of all samples at once.

    It does not depend on n, and may be below zero.

    Raises:
        ValueError: a set has less than two samples.

    Source: Binkowski et al. 2018, arXiv 1801.01401.
    """
    _check_two(real_nd, fake_md)
    x, y = real_nd.double(), fake_md.double()
    return _kernel(x, x, own=True) + _kernel(y, y, own=True) - 2 * _kernel(x, y, own=False)


def split_frechet_distances(real_nd: Tensor, fake_nd: Tensor, seed: int = 0) -> list[float]:
    """sFID: the Frechet distances between photos and the explanations of OTHER photos.

    An explanation resembles its own photo, which makes FID small for methods that change nothing.
    Rows are parted in two random halves, SPLITS times; each half of the photos is compared with
    the explanations of the other half. sFID is the mean of the 2 x SPLITS values that are returned.
    A row of NaN in ``fake_nd`` is an explanation that does not count.

    Raises:
        ValueError: a half has less than two samples.

    Source: Jeanneret et al. 2023, arXiv 2303.09962 (one split there).
    """
    rng, n = np.random.default_rng(seed), len(real_nd)
    counts = ~fake_nd.isnan().any(dim=1)
    found = []
    for _ in range(SPLITS):
        order = torch.from_numpy(rng.permutation(n))
        for real, fake in ((order[: n // 2], order[n // 2 :]), (order[n // 2 :], order[: n // 2])):
            found.append(frechet_distance(real_nd[real], fake_nd[fake[counts[fake]]]))
    return found


def cosines(before_nd: Tensor, after_nd: Tensor) -> list[float]:
    """How alike the features of each pair are.

    Their mean is FS with the features of a face network, and S3 with those of a self-supervised
    one (SimSiam); the share above SAME is FVA.

    Source: Jeanneret et al. 2023, arXiv 2303.09962; Singla et al. 2020, arXiv 1911.00483 (FVA).
    """
    pair = before_nd.double(), after_nd.double()
    return torch.nn.functional.cosine_similarity(*pair, dim=1).tolist()


def diversity(images: list[Tensor], distance: Callable[[Tensor, Tensor], float]) -> float | None:
    """Mean distance of all pairs of one photo's explanations; None for a single one.

    With LPIPS it is the sigma_L of the field; pass features and a cosine distance for others.
    """
    pairs = list(combinations(images, 2))
    return fmean(distance(a, b) for a, b in pairs) if pairs else None


def cosine_distance(a_d: Tensor, b_d: Tensor) -> float:
    """1 - the cosine of two features."""
    return 1 - cosines(a_d[None], b_d[None])[0]


def cout(
    before_3hw: Tensor,
    after_3hw: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    source: int,
    target: int,
) -> float:
    """Counterfactual transition score in [-1, 1]; 1 where the first pixels do it all.

    The pixels of the photo are replaced by those of the explanation, the most changed first, in
    COUT_STEPS equal parts. The score is the area under the curve of the target's probability minus
    that of the source's (trapezoids over the share of pixels).

    Args:
        before_3hw, after_3hw: the photo and its explanation, in [0, 1].
        probabilities: maps images (B,3,H,W) to (B,K).
        source, target: the classes; a flip goes from one to the other.

    Source: Khorram and Fuxin 2022 (C3LT), arXiv 2203.13190, with the mask of the ACE scripts.
    """
    changed = (after_3hw - before_3hw).abs().sum(dim=0).flatten()
    rank = torch.empty_like(changed, dtype=torch.long)
    rank[changed.argsort(descending=True, stable=True)] = torch.arange(
        len(changed), device=changed.device
    )
    parts = torch.arange(COUT_STEPS + 1, device=changed.device)[:, None] * len(changed) / COUT_STEPS
    taken = (rank < parts).view(-1, 1, *before_3hw.shape[1:])
    found = probabilities(torch.where(taken, after_3hw, before_3hw)).double()
    return float(torch.trapezoid(found[:, target] - found[:, source], dx=1 / COUT_STEPS))


def changed_attributes(before_na: Tensor, after_na: Tensor) -> list[int]:
    """How many attributes changed in each pair; their mean is MNAC.

    Args:
        before_na, after_na: probabilities; an attribute is there above 0.5. Classes of which one
            is true are attributes too: from one to another, two of them change.

    Source: Rodriguez et al. 2021 (DiVE), arXiv 2103.10226.
    """
    return ((before_na > 0.5) != (after_na > 0.5)).sum(dim=1).tolist()


def correlation_difference(
    photos_ma: Tensor, before_na: Tensor, after_na: Tensor, query: int
) -> float:
    """CD: do the explanations change what merely goes along with the attribute they shall change?

    The sum over all attributes of |correlation with the query attribute in photos - correlation of
    its changes with the query's changes|. What never changes has a correlation of 0.

    Args:
        photos_ma: the attributes of a data set, as labels or probabilities; those of the photos
            that were explained will do.
        before_na, after_na: probabilities for the pairs.
        query: the attribute that the explanations shall change.

    Source: Jeanneret et al. 2022 (DiME), arXiv 2203.15636.
    """
    photos, before, after = ((x > 0.5).double() for x in (photos_ma, before_na, after_na))
    changes = after - before
    return float(np.abs(_correlations(photos, query) - _correlations(changes, query)).sum())


def jackknifed(
    statistic: Callable[[Tensor], float], n: int
) -> tuple[float, tuple[float, float] | None]:
    """What is one figure of n cases, and its 95% interval by the delete-a-group jackknife.

    The bootstrap would not do: cases that are drawn twice make a Frechet distance larger.

    Args:
        statistic: of the cases with these indices.
        n: the number of cases.

    Returns:
        The figure; the interval's ends, None for less than two cases a group, or where the
        statistic has a ValueError for the cases without a group.

    Source: Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17.
    """
    value = statistic(torch.arange(n))
    if n < 2 * _GROUPS:
        return value, None
    group = torch.from_numpy(np.random.default_rng(0).permutation(n)) % _GROUPS
    try:
        without = torch.tensor([statistic((group != g).nonzero()[:, 0]) for g in range(_GROUPS)])
    except ValueError:
        return value, None
    spread = (without.double() - without.double().mean()).square().sum()
    half = _STUDENT * float(spread * (_GROUPS - 1) / _GROUPS) ** 0.5
    return value, (value - half, value + half)


def _moments(features_nd: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a factor F of the covariance F^T F with as few rows as possible."""
    _check_two(features_nd)
    x = features_nd.double()
    mean = x.mean(dim=0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(factor, mode="r").R if len(x) > x.shape[1] else factor


def _kernel(x_nd: Tensor, y_md: Tensor, own: bool) -> float:
    """The kernel's mean over all pairs. own: of one set, without pairs of a sample and itself."""
    total = sum(
        float((x_nd[k : k + _ROWS] @ y_md.T / x_nd.shape[1] + 1).pow(3).sum())
        for k in range(0, len(x_nd), _ROWS)
    )
    if not own:
        return total / (len(x_nd) * len(y_md))
    itself = float((x_nd.square().sum(dim=1) / x_nd.shape[1] + 1).pow(3).sum())
    return (total - itself) / (len(x_nd) * (len(x_nd) - 1))


def _check_two(*sets: Tensor) -> None:
    if min(map(len, sets)) < 2:
        raise ValueError(f"each set needs two samples, got {[len(x) for x in sets]}")


def _correlations(values_na: Tensor, query: int) -> np.ndarray:
    """Of every column with one; 0 where either never varies."""
    centred = values_na - values_na.mean(dim=0)
    norms = centred.norm(dim=0)
    products = centred.T @ centred[:, query]
    bounds = norms * norms[query]
    return torch.where(bounds > 0, products / bounds.clamp_min(1e-300), 0.0).numpy()
