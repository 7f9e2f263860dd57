"""Differences of pictures within a mask."""

from __future__ import annotations

from torch import Tensor


def masked_l1(a_3hw: Tensor, b_3hw: Tensor, mask_hw: Tensor) -> float | None:
    """Mean absolute difference of the pixels, weighted by a mask in [0, 1].

    None where the mask holds less than a pixel: nothing was compared, which is no difference of 0.
    """
    pixels = mask_hw.sum()
    if pixels < 1:
        return None
    return float(((a_3hw - b_3hw).abs() * mask_hw).sum() / (pixels * a_3hw.shape[0]))
