"""What every method is asked, and what a method is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from fastdigin import demo, embedded
from fastdigin.editing.prompts import replace_phrase
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.results.pictures import read_picture
from fastdigin_bench.truth_compare import halves, questions


@dataclass(frozen=True)
class Asked:
    """One photo that shall be seen as another class.

    image: (3, H, W) in [0, 1]. target: an index of the classifier. edited: the prompt with the
    target's word. photo: what is known of it; no method may look at its true mask.
    """

    item: ImageInput
    image: Tensor
    target: int
    edited: str
    photo: embedded.Photo

    @property
    def id(self) -> str:
        return self.item.id

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers that follow from the photo alone."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        return torch.randn(tuple(shape), generator=generator)


@dataclass(frozen=True)
class AskedNeuron:
    """One photo on which a neuron shall fire more ("max") or less ("min")."""

    item: ImageInput
    image: Tensor
    neuron: int
    direction: str
    photo: embedded.Photo

    @property
    def id(self) -> str:
        return f"{self.item.id}-neuron-{self.neuron}-{self.direction}"


class Method(Protocol):
    """Makes the images (B, 3, H, W) in [0, 1] of a batch of photos.

    name: in tables. A method is a frozen dataclass; its fields are its settings.
    """

    name: str

    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence) -> Tensor: ...


def photos_asked(classifier: Classifier, half: str, count: int) -> list[Asked]:
    """The first ``count`` questions of one half of the photos (truth_compare.halves)."""
    photos = halves()[half][:count]
    return [
        Asked(
            item, read_picture(photo.path), classifier.class_index(item.target),
            replace_phrase(item.prompt, item.source, item.target), photo,
        )
        for item, photo in zip(questions(photos), photos, strict=True)
    ]  # fmt: skip


def other_photos(half: str) -> list[Tensor]:
    """The photos (3, H, W) of the other half, of which nothing is asked."""
    (other,) = halves().keys() - {half}
    return [read_picture(photo.path) for photo in halves()[other]]


def neurons_asked(half: str, count: int) -> list[AskedNeuron]:
    """The first ``count`` of the demo's plans whose photos lie in that half."""
    by_id = {photo.id: photo for photo in halves()[half]}
    plans = (plan for plan in demo.neuron_counterfactual_plans() if plan[0].id in by_id)
    return [
        AskedNeuron(item, read_picture(item.image), neuron, direction, by_id[item.id])
        for item, neuron, direction in islice(plans, count)
    ]


def stacked(asked: Sequence[Asked | AskedNeuron], classifier: Classifier) -> Tensor:
    """The photos (B, 3, H, W), on the classifier's device."""
    return torch.stack([one.image for one in asked]).to(classifier.device)


def targets_of(asked: Sequence[Asked], classifier: Classifier) -> Tensor:
    """(B,) indices, on the classifier's device."""
    return torch.tensor([one.target for one in asked]).to(classifier.device)


def target_log(classifier: Classifier, images_b3hw: Tensor, targets_b: Tensor) -> Tensor:
    """(B,) log-probabilities of the targets, differentiable in the images."""
    logs = torch.log_softmax(classifier.logits(images_b3hw), dim=1)
    return logs.gather(1, targets_b[:, None])[:, 0]
