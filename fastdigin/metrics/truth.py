"""Explanations held against the truth, where it is known what a classifier was made to go by.

Of published figures none asks this: a flip says that the classifier changed its mind, not that the
explanation shows why. The truth is that of the embedded world's shortcuts
(``fastdigin.embedded.worlds``); attribute classifiers, whose classes are the features, read the
pictures. Validity, minimality and cost of the same explanations are the judge agreement, the L1 and
the seconds of :func:`fastdigin.metrics.score`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.metrics.figures import Figure, figure
from fastdigin.models.classifier import Classifier

Shortcut = tuple[str, str, str]
"""(class, attribute, feature), such as ("sneaker", "background", "grass")."""


@torch.no_grad()
def seen(readers: Mapping[str, Classifier], images: Sequence[Tensor]) -> list[dict[str, str]]:
    """What each image (3, H, W) shows: attribute -> the class that its reader sees."""
    rows: list[dict[str, str]] = [{} for _ in images]
    for name, reader in readers.items():
        for row, image in zip(rows, images, strict=True):
            row[name] = reader.classes[int(reader.logits(image[None].to(reader.device)).argmax())]
    return rows


def is_faithful(
    before: Mapping[str, str], after: Mapping[str, str], attribute: str, feature: str, more: bool
) -> bool:
    """Whether an explanation changes the planted feature in the right sense, and nothing else.

    Args:
        before, after: attribute -> feature, of the photo and of the explanation (:func:`seen`).
        attribute, feature: what was planted.
        more: whether the explanation should bring the feature, or take it away. A photo that has
            it already, or lacks it already, leaves nothing to change: False.
    """
    had, has = (shown[attribute] == feature for shown in (before, after))
    others = [name for name in before if name != attribute]
    return had != has == more and all(before[name] == after[name] for name in others)


def faithfulness(outcomes: Sequence[bool]) -> Figure:
    """The share of faithful explanations, with Wilson's interval."""
    return figure("faithfulness", list(outcomes))


@dataclass(frozen=True)
class Discovered:
    """What was found in one world. planted: what there was to find; empty in a clean world."""

    planted: Collection[Shortcut]
    found: Collection[Shortcut]

    @property
    def recovered(self) -> list[bool]:
        """For each planted shortcut, whether it was found."""
        return [shortcut in self.found for shortcut in self.planted]

    @property
    def extra(self) -> list[Shortcut]:
        """What was found and not planted."""
        return [shortcut for shortcut in self.found if shortcut not in self.planted]


def discovery(worlds: Sequence[Discovered]) -> list[Figure]:
    """Recovery over planted worlds, and false alarms over clean ones.

    "discovery": the share of planted shortcuts that were found; "worlds recovered": of planted
    worlds, those all of whose shortcuts were; "false alarms": of clean worlds, those where anything
    was found; "extra findings": their mean number in a planted world (they may be true all the
    same: a shortcut of one class takes photos away from others).
    """
    planted = [world for world in worlds if world.planted]
    clean = [world for world in worlds if not world.planted]
    return [
        figure("discovery", [hit for world in planted for hit in world.recovered]),
        figure("worlds recovered", [all(world.recovered) for world in planted]),
        figure("false alarms", [bool(world.found) for world in clean]),
        figure("extra findings", [float(len(world.extra)) for world in planted]),
    ]
