"""The attributes of photos that a classifier might go by, and photos with what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput, read_image, read_mask
from fastdigin.tasks.words import class_word, find_class


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


@dataclass(frozen=True)
class AuditPhoto:
    """A photo that was read.

    image: (3, H, W) in [0, 1] at the model's size. mask: (H, W), 1 on the object; None where the
    user gave none. class_: its label, or what the classifier sees; word: the class in prompts.
    prompt: made of what was read. features: attribute -> feature.
    """

    item: ImageInput
    image: Tensor
    mask: Tensor | None
    class_: int
    word: str
    prompt: str
    features: Mapping[str, str]


def embedded_attributes() -> tuple[Attribute, ...]:
    """Background and colour in the embedded world, read by its packaged classifiers."""
    return (
        Attribute("background", Classifier.load("embedded:background"), "background"),
        Attribute("colour", Classifier.load("embedded:colour"), "object"),
    )


def read_photos(
    classifier: Classifier, items: Sequence[ImageInput], attributes: Sequence[Attribute],
    prompt: str, size: int,
) -> list[AuditPhoto]:  # fmt: skip
    """Reads photos, their masks, classes and features. UserError for one that cannot be read.

    Of a label that the classifier does not know the audit makes no use: it takes what it sees.
    """
    images = [read_image(item, size) for item in items]
    shown = [attribute.read(torch.stack(images)) for attribute in attributes]
    read = []
    for n, (item, image) in enumerate(zip(items, images, strict=True)):
        class_ = find_class(classifier, image, _known(classifier, item.source))
        word = item.source_word or class_word(classifier, class_)
        features = {a.name: found[n] for a, found in zip(attributes, shown, strict=True)}
        said = prompt.format(object=word, **features)
        mask = read_mask(item, size)
        read.append(AuditPhoto(item, image, mask, class_, word, said, features))
    return read


def _known(classifier: Classifier, label: str | None) -> str | None:
    try:
        return None if label is None else str(classifier.class_index(label))
    except UserError:
        return None


@torch.no_grad()
def confidences(classifier: Classifier, images_n3hw: Tensor) -> Tensor:
    """(N, K) probabilities, on the CPU, in batches of 64."""
    device = classifier.device
    rows = [classifier.probabilities(part.to(device)).cpu() for part in images_n3hw.split(64)]
    return torch.cat(rows)
