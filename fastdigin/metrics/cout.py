"""COUT: does a small part of the change already turn the classifier?"""

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 50


def cout(
    before_3hw: Tensor,
    after_3hw: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    source: int,
    target: int,
) -> float:
    """Counterfactual transition score in [-1, 1]; 1 where the first pixels do it all.

    The pixels of the photo are replaced by those of the explanation, the most changed first, in
    STEPS equal parts. The score is the area under the curve of the target's probability minus that
    of the source's (trapezoids over the share of pixels).

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
    parts = torch.arange(STEPS + 1, device=changed.device)[:, None] * len(changed) / STEPS
    taken = (rank < parts).view(-1, 1, *before_3hw.shape[1:])
    found = probabilities(torch.where(taken, after_3hw, before_3hw)).double()
    return float(torch.trapezoid(found[:, target] - found[:, source], dx=1 / STEPS))
