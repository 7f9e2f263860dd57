"""Projected gradient descent on the pixels.

Source: Madry et al. 2018 (arXiv 1706.06083), section 2.1, with the normalised gradient and the
ball in L2 of Santurkar et al. 2019 (arXiv 1906.09453), who make images with robust classifiers.
Simplified: no random start; every photo takes all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.models.precision import over
from fastdigin_bench.methods.asked import Asked, stacked, target_log, targets_of


@dataclass(frozen=True)
class PixelPGD:
    """epsilon: radius of the ball in L2 around the photo, pixels in [0, 1]. rate: of epsilon."""

    epsilon: float = 4.0
    rate: float = 0.1
    steps: int = 60
    name: str = "pixel PGD"

    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        targets = targets_of(asked, classifier)

        def rising(images: Tensor) -> Tensor:
            return target_log(classifier, images, targets)

        photos = stacked(asked, classifier)
        return ascent(rising, photos, self.epsilon, self.rate * self.epsilon, self.steps)


def ascent(
    value: Callable[[Tensor], Tensor], photos: Tensor, epsilon: float, rate: float, steps: int
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of a larger ``value`` (B,), at most epsilon from the photos.

    Each step goes ``rate`` along the gradient; distances are Euclidean, for each image.
    """
    images = photos.clone()
    for _ in range(steps):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(value(images).sum(), images)
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        change = images.detach() + over(rate / norm, gradient) * gradient - photos
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12)
        change = change * over((epsilon / length).clamp_max(1), change)
        images = (photos + change).clamp(0, 1)
    return images.detach()
