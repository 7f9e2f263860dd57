"""Differences of pictures within a mask."""

from __future__ import annotations

from torch import Tensor


def masked_l1(a_3hw: Tensor, b_3hw: Tensor, mask_hw: Tensor) -> float:
    """Mean absolute difference of the pixels, weighted by a mask in [0, 1]."""
    weight = mask_hw.sum().clamp_min(1e-6) * a_3hw.shape[0]
    return float(((a_3hw - b_3hw).abs() * mask_hw).sum() / weight)
