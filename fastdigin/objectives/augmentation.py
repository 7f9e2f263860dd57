"""Random crops and noise, so that a classifier is convinced and not fooled on one pixel grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastdigin.configuration import check_settings, setting
from fastdigin.models.classifier import Classifier
from fastdigin.models.passes import called, once, view_of
from fastdigin.models.resampling import resample_crops
from fastdigin.objectives import philox

Key = tuple[int, int, int]
_BOXES, _NOISE = 0, 1  # streams of random numbers


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

        Args:
            image_3hw: (3,H,W) in [0,1].
            size: side of the crops in pixels.
            key: (job seed, iteration, loss step).

        Returns:
            (count,3,size,size), in the image's dtype.
        """
        return self.many(image_3hw[None], size, [key])[0]

    def many(self, images_b3hw: Tensor, size: int, keys: Sequence[Key]) -> Tensor:
        """The crops of several images, (B,count,3,size,size), each those of its own key.

        All randomness is drawn on the images' device, in one precision, from a generator that the
        key alone determines, and cast: crops do not depend on device (but for the last bits of
        functions like sin), dtype, batch or what was drawn before. Losses with the same key and
        size see the same crops.
        """
        words = philox.key_words(keys, images_b3hw.device)
        return called(("crops", self, size), partial(self._crops, size), images_b3hw, words)[0]

    def _crops(self, size: int, images_b3hw: Tensor, key_words: Tensor) -> tuple[Tensor]:
        height, width = images_b3hw.shape[-2:]
        full = min(height, width)
        smallest = min(size, self.min_fraction * full)
        drawn = philox.uniform(key_words, 3 * self.count, _BOXES)
        u, v, w = drawn.unflatten(1, (3, -1)).unbind(1)
        sides = smallest + (full - smallest) * u**self.power
        tops, lefts = v * (height - sides), w * (width - sides)
        boxes = zip(images_b3hw, tops, lefts, sides, strict=True)
        crops = torch.stack([resample_crops(*box, size) for box in boxes])
        if self.noise == 0:
            return (crops,)
        noise = philox.normal(key_words, crops[0].numel(), _NOISE)
        return (crops + self.noise * noise.view(crops.shape).to(crops),)


def views(
    image_3hw: Tensor, classifier: Classifier, cutouts: Cutouts | None, key: Key | None
) -> Tensor:
    """What the classifier looks at, at its size: the crops of this key, else the plain image.

    Returns:
        (count,3,size,size) crops, or (1,3,size,size) if there is no key or no cutouts. Crops are
        neither resized nor cropped again.
    """

    def make() -> tuple[Tensor]:
        if cutouts is None or key is None:
            return (classifier.prepare(image_3hw.unsqueeze(0)),)
        return (cutouts(image_3hw, classifier.size, key),)

    return once(view_of(classifier, cutouts, key), image_3hw, make)[0]
