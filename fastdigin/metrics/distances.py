"""How far a picture is from another one, pixel by pixel, within a mask."""

from torch import Tensor


def masked_l1(a_3hw: Tensor, b_3hw: Tensor, mask_hw: Tensor | None = None) -> float | None:
    """Mean absolute difference of the pixels, weighted by a mask in [0, 1].

    None where the mask holds less than a pixel: nothing was compared, which is no difference of 0.
    """
    return _mean((a_3hw - b_3hw).abs(), mask_hw)


def masked_l2(a_3hw: Tensor, b_3hw: Tensor, mask_hw: Tensor | None = None) -> float | None:
    """Root of the mean squared difference of the pixels, weighted as in :func:`masked_l1`."""
    square = _mean((a_3hw - b_3hw).square(), mask_hw)
    return None if square is None else square**0.5


def _mean(errors_chw: Tensor, mask_hw: Tensor | None) -> float | None:
    if mask_hw is None:
        return float(errors_chw.mean())
    pixels = mask_hw.sum()
    if pixels < 1:
        return None
    return float((errors_chw * mask_hw).sum() / (pixels * errors_chw.shape[0]))
