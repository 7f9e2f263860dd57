"""The feature attack: a neuron's activation is raised on the pixels of a photo.

Source: Singla and Feizi 2022 (Salient ImageNet, arXiv 2110.04301), section 3.3 and appendix: ascent
along the gradient within a ball in L2 around a photo, of a robust network's neuron; DiG-IN's Fig. 4
compares with it.
Simplified: the photo is the one that was asked about, where they take those that the neuron likes
best; "min" descends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin_bench.methods.asked import AskedNeuron, stacked
from fastdigin_bench.methods.pixel_pgd import ascent


@dataclass(frozen=True)
class FeatureAttack:
    """As :class:`fastdigin_bench.methods.pixel_pgd.PixelPGD`."""

    epsilon: float = 8.0
    rate: float = 0.1
    steps: int = 60
    name: str = "feature attack"

    def __call__(
        self, engine: Engine, classifier: Classifier, asked: Sequence[AskedNeuron]
    ) -> Tensor:
        neurons = torch.tensor([one.neuron for one in asked])
        signs = torch.tensor([1.0 if one.direction == "max" else -1.0 for one in asked])
        return self.of(classifier, stacked(asked, classifier), neurons, signs)

    def of(
        self, classifier: Classifier, photos: Tensor, neurons_b: Tensor, signs_b: Tensor
    ) -> Tensor:
        """The photos (B, 3, H, W), each with its neuron raised (sign 1) or lowered (-1)."""
        neurons, signs = neurons_b.to(photos.device), signs_b.to(photos)
        # A neuron that is off has no gradient: it goes through the ReLU in front of it.
        passing = classifier.passing_relu()

        def moved(images: Tensor) -> Tensor:
            return signs * passing.activations(images).gather(1, neurons[:, None])[:, 0]

        return ascent(moved, photos, self.epsilon, self.rate * self.epsilon, self.steps)
