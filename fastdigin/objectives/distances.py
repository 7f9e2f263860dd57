"""Staying near a reference, everywhere or in the foreground or background only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample

REGIONS = ("all", "foreground", "background")
Region = Literal["all", "foreground", "background"]


@dataclass(frozen=True, eq=False)
class Distance:
    """mean(region * |x - reference|^p) over ALL elements, p = 1 (l1) or 2 (l2).

    Because the mean is over all elements, not over the region, a small region counts little.

    Args:
        reference: (3,H,W) in [0,1], or latents (C,h,w); kept as it is now.
        space: whether x is the image, "pixels", or its "latents".
        norm: "l1" or "l2".
        region: "all", "foreground" (the mask) or "background" (1 - mask).
        mask: the foreground (H,W) in [0,1], needed by the regions. One of another size than the
            reference is area-averaged to it.
        weight: of this loss in the total.
        name: in the history.

    Raises:
        UserError: an unknown word, or a mask that is missing or outside [0,1].

    Example:
        >>> loss = Distance(photo, region="background", mask=foreground, weight=250.0)

    Source: DiG-IN, section 4.2 and supplement C, keeps the background with it.
    """

    reference: Tensor
    space: Literal["pixels", "latents"] = "pixels"
    norm: Literal["l1", "l2"] = "l2"
    region: Region = "all"
    mask: Tensor | None = None
    weight: float = 1.0
    name: str = "distance"
    _region_hw: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("space", self.space, ("pixels", "latents"))
        check_choice("norm", self.norm, ("l1", "l2"))
        object.__setattr__(self, "reference", self.reference.detach().clone())
        object.__setattr__(self, "_region_hw", region_of(self.region, self.mask, self.reference))

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        x = candidate.image if self.space == "pixels" else candidate.latents
        check_shape(x, self.reference, self.name)
        difference = x - self.reference.to(x, non_blocking=True)
        errors = difference.abs() if self.norm == "l1" else difference.square()
        if self._region_hw is not None:
            errors = self._region_hw.to(x, non_blocking=True) * errors
        return errors.mean()


def region_of(region: str, mask: Tensor | None, reference_chw: Tensor) -> Tensor | None:
    """Weights (h,w) of the region at the reference's size; None means everywhere."""
    check_choice("region", region, REGIONS)
    if region == "all":
        return None
    if mask is None:
        raise UserError(f"region {region!r} needs a mask: give one, or use region 'all'.")
    mask_hw = mask.detach().to(reference_chw.dtype, copy=True)
    if mask_hw.ndim != 2 or not (mask_hw.min() >= 0 and mask_hw.max() <= 1):
        raise UserError(
            f"mask must be (H,W) with values in [0,1], got {tuple(mask.shape)} with values in "
            f"[{mask.min():.3g}, {mask.max():.3g}]."
        )
    size = tuple(reference_chw.shape[-2:])
    if tuple(mask_hw.shape) != size:
        mask_hw = resample(mask_hw[None, None], size)[0, 0]
    return mask_hw if region == "foreground" else 1 - mask_hw


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def check_shape(x: Tensor, reference: Tensor, name: str) -> None:
    if x.shape != reference.shape:
        raise UserError(
            f"the reference of {name!r} is {tuple(reference.shape)}, but the candidate is "
            f"{tuple(x.shape)}: they must have the same shape."
        )
