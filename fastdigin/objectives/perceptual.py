"""Staying near a reference as a network sees it: LPIPS, or the features of any embedding."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdigin.errors import UserError, check_choice
from fastdigin.objectives.distances import Region, Regional


@dataclass(frozen=True, eq=False)
class LpipsDistance(Regional):
    """LPIPS between the image and a reference.

    With a region, the pixels outside it are taken from the reference before comparing, so that
    they neither count nor receive a gradient.

    Args:
        network: from :func:`load_lpips`, on the device of the images.
        reference, region, mask, weight, name: as in :class:`Distance`.

    Raises:
        UserError: an unknown region, or a mask that is missing or outside [0,1].

    Example:
        >>> loss = LpipsDistance(load_lpips(), photo, region="background", mask=foreground)

    Source: Zhang et al. 2018, arXiv 1801.03924.
    """

    network: nn.Module
    reference: Tensor
    region: Region = "all"
    mask: Tensor | None = None
    weight: float = 1.0
    name: str = "lpips"

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        x, reference = _within_region(candidate.image, self)
        return self.network(x[None], reference[None], normalize=True).mean()


@dataclass(frozen=True, eq=False)
class FeatureDistance(Regional):
    """The distance of image and reference in the feature space of a network.

    With a region, the pixels outside it are taken from the reference before comparing, so that
    they receive no gradient. An object cut out onto grey would be nothing that an embedding was
    trained on, and its outline would count more than its content.

    Args:
        features: maps images (B,3,H,W) in [0,1] to features (B,D), differentiable, on the device
            of the reference. ``Classifier.activations`` is one, of a classifier or of
            ``load_embedding("open_clip:MODEL/PRETRAINED")``.
        reference: (3,H,W) in [0,1]; its features are computed once, now.
        norm: "cosine", 1 - the cosine of both features, or "l2", the mean of their squared
            difference over D.
        region, mask, weight, name: as in :class:`Distance`.

    Raises:
        UserError: an unknown word, a mask that is missing or outside [0,1], or features of another
            shape than (B,D).

    Example:
        >>> clip = load_embedding("open_clip:ViT-B-32/laion2b_s34b_b79k")
        >>> loss = FeatureDistance(clip.activations, photo, region="foreground", mask=mask)

    Source: DiG-IN's code has a distance of foreground and background in CLIP's space. It masks the
    tokens of the last layer, into which attention has mixed the other region already.
    """

    features: Callable[[Tensor], Tensor]
    reference: Tensor
    norm: Literal["cosine", "l2"] = "cosine"
    region: Region = "all"
    mask: Tensor | None = None
    weight: float = 1.0
    name: str = "features"
    _reference_1d: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, ("cosine", "l2"))
        super().__post_init__()
        with torch.no_grad():
            features = self.features(self.reference[None])
        if features.ndim != 2:
            raise UserError(
                f"features of {self.name!r} must be (B,D), got {tuple(features.shape)} of one "
                "image: pool them first"
            )
        object.__setattr__(self, "_reference_1d", features)

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        found = self.features(_within_region(candidate.image, self)[0][None])
        reference = self._reference_1d.to(found, non_blocking=True)
        if self.norm == "l2":
            return (found - reference).square().mean()
        return 1 - F.cosine_similarity(found, reference).mean()


def load_lpips(network: Literal["alex", "vgg"] = "alex") -> nn.Module:
    """The frozen LPIPS network of the package lpips, called as net(x, y, normalize=True).

    Its backbone's weights are torchvision's and must be in torch's hub cache: nothing is
    downloaded. Both files are read as tensors only.

    Args:
        network: the backbone.

    Returns:
        The network, for :class:`LpipsDistance`.

    Raises:
        UserError: the package or the backbone's weights are missing.

    Example:
        >>> loss = LpipsDistance(load_lpips(), photo)
    """
    check_choice("network", network, ("alex", "vgg"))
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
        # A random backbone, because lpips itself would download and unpickle it.
        model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    backbone = torch.load(backbone_file, map_location="cpu", weights_only=True)
    # lpips cuts torchvision's ``features`` into slices, which keep the numbers of their layers.
    for key, value in model.net.state_dict().items():
        value.copy_(backbone["features." + key.partition(".")[2]])
    return model.eval().requires_grad_(False)


def _within_region(image_3hw: Tensor, loss: Regional) -> tuple[Tensor, Tensor]:
    """The image where the region is and the reference elsewhere; and the reference."""
    reference, region_hw = loss.reference_of(image_3hw)
    if region_hw is not None:
        image_3hw = reference + region_hw * (image_3hw - reference)
    return image_3hw, reference
