"""The photos of an audit, with what they show and how sure the classifier is of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdigin.audit.attributes import Attribute, confidences
from fastdigin.audit.findings import Correlation, correlation
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput, read_image, read_mask
from fastdigin.tasks.words import class_word, find_class

MOST_CLASSES = 12


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


@dataclass(frozen=True)
class Material:
    """All photos that were read.

    sure_nk: (N, K), the classifier's confidences. own: class -> its photos, by number; of classes
    with two photos or more, in order.
    """

    classifier: Classifier
    photos: Sequence[AuditPhoto]
    sure_nk: Tensor
    own: Mapping[int, Sequence[int]]

    @classmethod
    def of(cls, classifier: Classifier, photos: Sequence[AuditPhoto]) -> Material:
        """UserError where no class has two photos."""
        counts = Counter(photo.class_ for photo in photos).most_common(MOST_CLASSES)
        classes = sorted(class_ for class_, count in counts if count > 1)
        if not classes:
            raise UserError(
                f"no class of {classifier.name} has two photos among the {len(photos)} given: give "
                "more"
            )
        sure_nk = confidences(classifier, torch.stack([photo.image for photo in photos]))
        own = {c: [n for n, photo in enumerate(photos) if photo.class_ == c] for c in classes}
        return cls(classifier, photos, sure_nk, own)

    def only(self, classes: Collection[int]) -> Material:
        """The same without the other classes."""
        return replace(self, own={c: numbers for c, numbers in self.own.items() if c in classes})

    def of_class(self, class_: int) -> list[AuditPhoto]:
        return [self.photos[n] for n in self.own[class_]]

    def surest(self, class_: int) -> AuditPhoto:
        """The photo of the class that the classifier is most sure of."""
        return self.photos[max(self.own[class_], key=lambda n: float(self.sure_nk[n, class_]))]

    def correlation(self, attribute: Attribute, feature: str, class_: int) -> Correlation:
        """Of having a feature with the confidence, over the photos of a class."""
        groups: tuple[list[float], list[float]] = ([], [])
        for n in self.own[class_]:
            has = self.photos[n].features[attribute.name] == feature
            groups[0 if has else 1].append(float(self.sure_nk[n, class_]))
        return correlation(self.classifier.classes[class_], attribute.name, feature, *groups)


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
        try:
            said = prompt.format(object=word, **features)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"prompt {prompt!r} asks for {error}: write {{object}} and "
                f"{', '.join(f'{{{name}}}' for name in features) or 'no attribute'}"
            ) from None
        mask = read_mask(item, size)
        read.append(AuditPhoto(item, image, mask, class_, word, said, features))
    return read


def _known(classifier: Classifier, label: str | None) -> str | None:
    try:
        return None if label is None else str(classifier.class_index(label))
    except UserError:
        return None
