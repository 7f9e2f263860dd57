"""Staying near a reference, everywhere or in the foreground or background only."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fastdigin.errors import UserError, check_choice
from fastdigin.models.resampling import resample

REGIONS = ("all", "foreground", "background")
Region = Literal["all", "foreground", "background"]


class Regional:
    """A loss that keeps its ``reference`` (C,H,W) as it is now, and looks at a region of it."""

    def __post_init__(self) -> None:
        check_choice("region", self.region, REGIONS)
        object.__setattr__(self, "reference", self.reference.detach().clone())
        object.__setattr__(self, "_region_hw", None if self.region == "all" else self._weights())

    def reference_of(self, x_chw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reference and weights (H,W) where the candidate is; no weights mean everywhere."""
        if x_chw.shape != self.reference.shape:
            raise UserError(
                f"the reference of {self.name!r} is {tuple(self.reference.shape)}, but the "
                f"candidate is {tuple(x_chw.shape)}: they must have the same shape."
            )
        region_hw = self._region_hw
        if region_hw is not None:
            region_hw = region_hw.to(x_chw, non_blocking=True)
        return self.reference.to(x_chw, non_blocking=True), region_hw

    def _weights(self) -> Tensor:
        if self.mask is None:
            raise UserError(f"region {self.region!r} needs a mask: give one, or use region 'all'.")
        mask_hw = self.mask.detach().to(self.reference.dtype, copy=True)
        if not mask_hw.isfinite().all():
            raise UserError(
                "mask has values that are not finite: attention or the VAE overflowed in fp16, so "
                'take dtype "bf16" or "fp32", or give a mask of your own.'
            )
        if mask_hw.ndim != 2 or not (mask_hw.min() >= 0 and mask_hw.max() <= 1):
            raise UserError(
                f"mask must be (H,W) with values in [0,1], got {tuple(mask_hw.shape)} with values "
                f"in [{mask_hw.min():.3g}, {mask_hw.max():.3g}]."
            )
        size = self.reference.shape[-2:]
        if mask_hw.shape != size:
            mask_hw = resample(mask_hw[None, None], tuple(size))[0, 0]
        return mask_hw if self.region == "foreground" else 1 - mask_hw


@dataclass(frozen=True, eq=False)
class Distance(Regional):
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

    def __post_init__(self) -> None:
        check_choice("space", self.space, ("pixels", "latents"))
        check_choice("norm", self.norm, ("l1", "l2"))
        super().__post_init__()

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        x = candidate.image if self.space == "pixels" else candidate.latents
        reference, region_hw = self.reference_of(x)
        errors = (x - reference).abs() if self.norm == "l1" else (x - reference).square()
        return errors.mean() if region_hw is None else (region_hw * errors).mean()
