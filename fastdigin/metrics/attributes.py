"""Which attributes an explanation changes, as a network sees them."""

import numpy as np
import torch
from torch import Tensor


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


def _correlations(values_na: Tensor, query: int) -> np.ndarray:
    """Of every column with one; 0 where either never varies."""
    centred = values_na - values_na.mean(dim=0)
    norms = centred.norm(dim=0)
    products = centred.T @ centred[:, query]
    bounds = norms * norms[query]
    return torch.where(bounds > 0, products / bounds.clamp_min(1e-300), 0.0).numpy()
