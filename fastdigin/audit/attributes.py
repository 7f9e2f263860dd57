"""The attributes of photos that a classifier might go by, and the networks that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdigin.models.classifier import Classifier


@dataclass(frozen=True)
class Attribute:
    """Something that photos have in one of several ways, such as a background.

    Args:
        name: of the attribute.
        reader: a classifier whose classes are the features, words of the diffusion model's prompts.
        region: what of a photo has it: the object or the background.

    Example:
        >>> Attribute("background", Classifier.load("embedded:background"), "background")
    """

    name: str
    reader: Classifier
    region: Literal["object", "background"]

    @property
    def features(self) -> tuple[str, ...]:
        return self.reader.classes

    @torch.no_grad()
    def read(self, images_n3hw: Tensor) -> list[str]:
        """The feature that each image shows."""
        found = confidences(self.reader, images_n3hw).argmax(dim=1)
        return [self.features[n] for n in found.tolist()]


def embedded_attributes() -> tuple[Attribute, ...]:
    """Background and colour in the embedded world, read by its packaged classifiers."""
    return (
        Attribute("background", Classifier.load("embedded:background"), "background"),
        Attribute("colour", Classifier.load("embedded:colour"), "object"),
    )


@torch.no_grad()
def confidences(classifier: Classifier, images_n3hw: Tensor) -> Tensor:
    """(N, K) probabilities, on the CPU, in batches of 64."""
    device = classifier.device
    rows = [classifier.probabilities(part.to(device)).cpu() for part in images_n3hw.split(64)]
    return torch.cat(rows)
