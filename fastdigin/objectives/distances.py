"""Staying near a reference, everywhere or in the foreground or background only."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample

SPACES = ("pixels", "latents")
NORMS = ("l1", "l2")
REGIONS = ("all", "foreground", "background")


@dataclass(frozen=True, eq=False)
class Distance:
    """mean(region * |x - reference|^p) over ALL elements, p = 1 (l1) or 2 (l2).

    Because the mean is over all elements, not over the region, a small region counts little.

    reference: (3,H,W) in [0,1] or latents (C,h,w), kept as it is now. mask: foreground mask (H,W)
    in [0,1], needed by the regions "foreground" (mask) and "background" (1 - mask); one of another
    size than the reference is area-averaged to it. (DiG-IN keeps the background with it.)
    """

    reference: Tensor
    space: Literal["pixels", "latents"] = "pixels"
    norm: Literal["l1", "l2"] = "l2"
    region: Literal["all", "foreground", "background"] = "all"
    mask: Tensor | None = None
    weight: float = 1.0
    name: str = "distance"
    _region_hw: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_choice("space", self.space, SPACES)
        _check_choice("norm", self.norm, NORMS)
        object.__setattr__(self, "reference", self.reference.detach().clone())
        object.__setattr__(self, "_region_hw", _region(self.region, self.mask, self.reference))

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        x = candidate.image if self.space == "pixels" else candidate.latents
        _check_shape(x, self.reference, self.name)
        difference = x - self.reference.to(x, non_blocking=True)
        errors = difference.abs() if self.norm == "l1" else difference.square()
        if self._region_hw is not None:
            errors = self._region_hw.to(x, non_blocking=True) * errors
        return errors.mean()


@dataclass(frozen=True, eq=False)
class LpipsDistance:
    """LPIPS between the image and a reference (Zhang et al. 2018, arXiv 1801.03924).

    network: from :func:`load_lpips`. With a region, the pixels outside it are taken from the
    reference before comparing, so that they neither count nor receive a gradient. reference and
    mask as in :class:`Distance`.
    """

    network: nn.Module
    reference: Tensor
    region: Literal["all", "foreground", "background"] = "all"
    mask: Tensor | None = None
    weight: float = 1.0
    name: str = "lpips"
    _region_hw: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", self.reference.detach().clone())
        object.__setattr__(self, "_region_hw", _region(self.region, self.mask, self.reference))

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        x = candidate.image
        _check_shape(x, self.reference, self.name)
        reference = self.reference.to(x, non_blocking=True)
        if self._region_hw is not None:
            x = reference + self._region_hw.to(x, non_blocking=True) * (x - reference)
        return self.network(x[None], reference[None], normalize=True).mean()


def load_lpips(network: Literal["alex", "vgg"] = "alex") -> nn.Module:
    """The frozen LPIPS network of the package lpips, called as net(x, y, normalize=True).

    Its backbone's weights are torchvision's and must be in torch's hub cache: nothing is
    downloaded. Both files are read as tensors only.

    Raises UserError if the package or the backbone's weights are missing.
    """
    _check_choice("network", network, ("alex", "vgg"))
    try:
        import lpips
        from torchvision.models import AlexNet_Weights, VGG16_Weights
    except ImportError as error:
        raise UserError(
            "the LPIPS distance needs the package lpips: pip install 'fastdigin[lpips]'."
        ) from error
    url = {"alex": AlexNet_Weights, "vgg": VGG16_Weights}[network].IMAGENET1K_V1.url
    backbone_file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not backbone_file.is_file():
        raise UserError(
            f"the LPIPS distance {network!r} needs the weights {backbone_file.name}, which are not "
            f"in {backbone_file.parent}: put the file from {url} there."
        )
    with warnings.catch_warnings():  # lpips calls torchvision in a deprecated way
        warnings.simplefilter("ignore")
        # Random weights, because lpips itself would download and unpickle.
        model = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False)
    backbone = torch.load(backbone_file, map_location="cpu", weights_only=True)
    # lpips cuts torchvision's ``features`` into slices, which keep the numbers of their layers.
    for key, value in model.net.state_dict().items():
        value.copy_(backbone["features." + key.partition(".")[2]])
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
    heads = torch.load(heads_file, map_location="cpu", weights_only=True)
    result = model.load_state_dict(heads, strict=False)
    assert not result.unexpected_keys, f"{heads_file.name} does not fit this version of lpips"
    return model.eval().requires_grad_(False)


def _region(region: str, mask: Tensor | None, reference_chw: Tensor) -> Tensor | None:
    """Weights (h,w) of the region at the reference's size; None means everywhere."""
    _check_choice("region", region, REGIONS)
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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def _check_shape(x: Tensor, reference: Tensor, name: str) -> None:
    if x.shape != reference.shape:
        raise UserError(
            f"the reference of {name!r} is {tuple(reference.shape)}, but the candidate is "
            f"{tuple(x.shape)}: they must have the same shape."
        )
