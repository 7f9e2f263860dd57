"""Foreground masks from cross-attention (DiG-IN, supplement C), and their use in blending."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdigin.editing.schedules import Schedule, schedule_weights
from fastdigin.engine.job import Blending

PAPER_SIZE = 512  # the sizes below are pixels of a 512 px image and scale with it
EROSION, DILATION, BLUR_KERNEL, BLUR_SIGMA = 3, 20, 45, 30
SQUASH_ABOVE = 0.3
TIGHT_FROM, TIGHT_TO = 0.5, 0.7  # of the squashed attention: a quarter, and half, of the largest


def attention_mask(maps_lhw: Tensor, tokens: list[int], image_size: int) -> Tensor:
    """Where the object's words are looked at: 0 at the smallest attention, 1 at the largest.

    Between them it is squashed: above 0.3 its square root is taken.

    Args:
        maps_lhw: (L, h, w), of an AttentionStore.
        tokens: positions of the object's tokens.
        image_size: side of the mask in pixels.

    Returns:
        (image_size, image_size) in [0, 1].

    Source: DiG-IN, supplement C.
    """
    attention = maps_lhw[tokens].mean(dim=0)[None, None]
    mask = F.interpolate(attention, (image_size, image_size), mode="bilinear")[0, 0]
    mask = mask - mask.min()
    mask = mask / mask.max().clamp_min(torch.finfo(mask.dtype).tiny)
    return torch.where(mask > SQUASH_ABOVE, mask.sqrt(), mask)


def soften(mask_hw: Tensor) -> Tensor:
    """Erosion, dilation and Gaussian blur at the paper's sizes, scaled to the image.

    It gives an object a soft margin.

    Source: DiG-IN, supplement C.
    """
    scale = mask_hw.shape[-1] / PAPER_SIZE
    mask = mask_hw[None, None]
    mask = -_dilate(-mask, round(EROSION * scale))
    mask = _dilate(mask, round(DILATION * scale))
    return _blur(mask, BLUR_KERNEL * scale, BLUR_SIGMA * scale)[0, 0].clamp(0, 1)


def tighten(mask_hw: Tensor) -> Tensor:
    """0 up to TIGHT_FROM, 1 from TIGHT_TO, linear between: the object without its surroundings."""
    return ((mask_hw - TIGHT_FROM) / (TIGHT_TO - TIGHT_FROM)).clamp(0, 1)


def latent_mask(mask_hw: Tensor, latent_size: int) -> Tensor:
    """The mask averaged to latent size (h, w)."""
    return F.adaptive_avg_pool2d(mask_hw[None, None], latent_size)[0, 0]


def blending(mask_hw: Tensor, trajectory: Tensor, schedule: Schedule) -> Blending:
    """Keeps the source where the mask is 1, for as long as the schedule says.

    Args:
        mask_hw: (h, w) in [0, 1], at latent size.
        trajectory: (T + 1, C, h, w) of an Inversion.
        schedule: a number is a fraction of the steps, counted from the first.
    """
    return Blending(mask_hw, trajectory[:-1], schedule_weights(schedule, len(trajectory) - 1))


def _dilate(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def _blur(mask: Tensor, kernel: float, sigma: float) -> Tensor:
    radius = max(math.floor(kernel / 2), 1)
    x = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    weights = torch.softmax(-(x**2) / (2 * sigma**2), dim=0)
    padded = F.pad(mask, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
