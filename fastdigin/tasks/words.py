"""Class names as words of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin.models.classifier import Classifier


def class_word(classifier: Classifier, index: int) -> str:
    """The first synonym of a class name: "robin, American robin" gives "robin"."""
    return classifier.classes[index].split(",")[0].replace("_", " ").strip()


@torch.no_grad()
def find_class(classifier: Classifier, image_3hw: Tensor, name: str | None) -> int:
    """The class called ``name``, or what the classifier sees where no name is given."""
    if name is not None:
        return classifier.class_index(name)
    return int(classifier.logits(image_3hw[None].to(classifier.device)).argmax())
