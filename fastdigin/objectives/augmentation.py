"""Random crops and noise, so that a classifier is convinced and not fooled on one pixel grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.configuration import check_settings, setting
from fastdigin.models.classifier import Classifier
from fastdigin.models.resampling import resample_crops

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Cutouts:
    """Random square crops, averaged down to the classifier's size, plus Gaussian noise.

    For an image whose shorter side is ``full`` and a classifier of ``size`` pixels,

        smallest = min(size, min_fraction * full)
        side     = smallest + (full - smallest) * u ** power,     u uniform in [0,1]

    and the crop lies anywhere in the image with the same probability. Sides and positions are not
    whole pixels.

    Args:
        count: crops of an image.
        power: above 0. 0.3 prefers large crops: half of them go at least 81% of the way from
            ``smallest`` to ``full``.
        noise: standard deviation, on the images' scale of [0,1].
        min_fraction: in (0,1]. It acts on classifiers nearly as large as the image, where all
            crops would otherwise be the whole image; 0.75 is what the 48 pixels of the packaged
            classifiers are of their 64 pixel images.

    Raises:
        UserError: a setting outside its range.

    Example:
        >>> crops = Cutouts(count=8)(image_3hw, size=224, key=(0, 0, 0))    # (8,3,224,224)

    Source: DiG-IN (arXiv 2311.17833), whose code takes whole pixels and has no ``min_fraction``.
    """

    count: int = setting(16, "crops an image and step", least=1)
    power: float = setting(0.3, "below 1 prefers large crops", above=0)
    noise: float = setting(0.005, "standard deviation of the noise, on a scale of [0, 1]", least=0)
    min_fraction: float = setting(
        0.75, "of the image's shorter side, for classifiers as large as it", above=0, most=1
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, image_3hw: Tensor, size: int, key: Key) -> Tensor:
        """The crops of this key; differentiable in the image.

        All randomness is drawn on the CPU from a generator that ``key`` alone seeds, in one
        precision, and cast: crops do not depend on device, dtype, batch or what was drawn before.
        Losses with the same key and size see the same crops.

        Args:
            image_3hw: (3,H,W) in [0,1].
            size: side of the crops in pixels.
            key: (job seed, iteration, loss step).

        Returns:
            (count,3,size,size), in the image's dtype.
        """
        generator = torch.Generator().manual_seed(_stable_hash(key))
        height, width = image_3hw.shape[-2:]
        full = min(height, width)
        smallest = min(size, self.min_fraction * full)
        u, v, w = torch.rand(3, self.count, generator=generator, dtype=torch.float64)
        sides = smallest + (full - smallest) * u**self.power
        tops, lefts = v * (height - sides), w * (width - sides)
        crops = resample_crops(image_3hw, tops, lefts, sides, size)
        if self.noise == 0:
            return crops
        # float32: four times faster to draw than float64, and exact when cast up.
        noise = torch.randn(crops.shape, generator=generator, dtype=torch.float32)
        return crops + self.noise * noise.to(crops, non_blocking=True)


def views(
    image_3hw: Tensor, classifier: Classifier, cutouts: Cutouts | None, key: Key | None
) -> Tensor:
    """What the classifier looks at, at its size: the crops of this key, else the plain image.

    Returns:
        (count,3,size,size) crops, or (1,3,size,size) if there is no key or no cutouts. Crops are
        neither resized nor cropped again.
    """
    if cutouts is None or key is None:
        return classifier.prepare(image_3hw.unsqueeze(0))
    return cutouts(image_3hw, classifier.size, key)


def _stable_hash(key: Key) -> int:
    """63 bits of a key, the same in every process and on every machine."""
    text = ",".join(str(int(part)) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
