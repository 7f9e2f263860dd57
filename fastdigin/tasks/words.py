"""Class names as words of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin.models.classifier import Classifier


def class_word(classifier: Classifier, index: int) -> str:
    """The first synonym of a class name: "robin, American robin" gives "robin"."""
    return classifier.classes[index].split(",")[0].replace("_", " ").strip()


def same_classes(f: Classifier, g: Classifier) -> bool:
    """Whether an index means the same to both: most names at the same index share a synonym.

    Libraries spell ImageNet's classes differently, and two of them are a "crane": there names alone
    would lead to another class.
    """
    if len(f.classes) != len(g.classes):
        return False
    synonyms = ([{s.strip().casefold() for s in c.split(",")} for c in x.classes] for x in (f, g))
    shared = sum(bool(a & b) for a, b in zip(*synonyms, strict=True))
    return 2 * shared > len(f.classes)


@torch.no_grad()
def find_class(classifier: Classifier, image_3hw: Tensor, name: str | None) -> int:
    """The class called ``name``, or what the classifier sees where no name is given."""
    if name is not None:
        return classifier.class_index(name)
    return int(classifier.logits(image_3hw[None].to(classifier.device)).argmax())
