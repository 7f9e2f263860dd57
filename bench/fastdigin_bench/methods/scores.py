"""What the images of a method are worth: the same scores for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdigin.editing.masks import soften
from fastdigin.metrics.distances import masked_l1
from fastdigin.metrics.extractors import Extractor
from fastdigin.metrics.features import jackknifed, kernel_distance
from fastdigin.metrics.figures import Figure, Value, figure
from fastdigin.metrics.truth import is_faithful, seen
from fastdigin.models.classifier import Classifier
from fastdigin.results.pictures import read_picture
from fastdigin_bench.methods.asked import Asked, AskedNeuron

SCORES = {  # key -> (title, whether more is better)
    "flip_rate": ("flips", True),
    "judge": ("judge agrees", True),
    "kept": ("colour, background kept", True),
    "faithfulness": ("faithful: both", True),
    "confidence": ("confidence", True),
    "background_l1": ("background L1", False),
    "l1": ("L1", False),
    "kid": ("KID", False),
    "seconds": ("seconds", False),
}
NEURON_SCORES = {
    "moved": ("activation as asked", True),
    "shown": ("background comes or goes", True),
    "kept": ("judge still sees the garment", True),
    "faithfulness": ("faithful: that alone", True),
    "foreground_l1": ("L1 in the true mask", False),
    "seconds": ("seconds", False),
}
Rows = list[dict[str, Value]]
Figures = dict[str, Figure]
Shown = Mapping[str, str]
"""Attribute -> the feature that its reader sees; of the readers judge, background and colour."""


@torch.no_grad()
def rows_of(
    classifier: Classifier, asked: Sequence[Asked], images: Sequence[Tensor],
    before: Sequence[Shown], after: Sequence[Shown], seconds: Sequence[float],
) -> Rows:  # fmt: skip
    """A row a photo. before, after: what the readers see in the photos and in the images.

    A counterfactual is faithful where the judge sees the target and nothing else has changed: a
    classifier without shortcuts goes by the garment. The background is what lies outside of the
    garment's true mask with the soft margin that the paper gives masks: a garment may change its
    outline.
    """
    probabilities = torch.softmax(classifier.logits(torch.stack(list(images))), dim=1)
    rows = []
    for n, (one, image) in enumerate(zip(asked, images, strict=True)):
        background = 1 - soften(read_picture(one.photo.mask_path))
        rows.append({
            "flip_rate": classifier.sees(probabilities[n], one.target),
            "judge": after[n]["judge"] == one.item.target,
            "kept": after[n]["background"] == one.photo.background
            and after[n]["colour"] == one.photo.colour,
            "faithfulness": is_faithful(before[n], after[n], "judge", one.item.target, more=True),
            "confidence": float(probabilities[n, one.target]),
            "background_l1": masked_l1(image, one.image, background),
            "l1": float((image - one.image).abs().mean()),
            "seconds": seconds[n],
        })  # fmt: skip
    return rows


@torch.no_grad()
def neuron_rows(
    classifier: Classifier, readers: Mapping[str, Classifier], planted: Mapping[int, str],
    asked: Sequence[AskedNeuron], images: Sequence[Tensor], seconds: Sequence[float],
) -> Rows:  # fmt: skip
    """A row a photo. planted: neuron -> the background that it fires for."""
    before, after = (seen(readers, shown) for shown in ([one.image for one in asked], images))
    rows = []
    for n, (one, image) in enumerate(zip(asked, images, strict=True)):
        first, last = classifier.activations(torch.stack([one.image, image]))[:, one.neuron]
        up, home = one.direction == "max", planted[one.neuron]
        rows.append({
            "moved": bool(last > first) == up,
            "shown": (after[n]["background"] == home) == up,
            "kept": after[n]["judge"] == one.photo.garment,
            "faithfulness": is_faithful(before[n], after[n], "background", home, up),
            "foreground_l1": masked_l1(image, one.image, read_picture(one.photo.mask_path)),
            "seconds": seconds[n],
        })  # fmt: skip
    return rows


def figures(rows: Rows) -> Figures:
    """Score -> its figure, with 95% interval."""
    return {key: figure(key, [row[key] for row in rows]) for key in rows[0]}


@torch.no_grad()
def realism(extractor: Extractor, images: Sequence[Tensor], photos_nd: Tensor) -> Figures:
    """KID, the distance of the images as a set to photos of which none was asked about.

    photos_nd: their features.
    """
    features = extractor.features(torch.stack(list(images)))
    value, interval = jackknifed(
        lambda kept: kernel_distance(photos_nd, features[kept]), len(features)
    )
    return {"kid": Figure("kid", value, len(features), interval)}


def plain(name: str, found: Figures) -> dict[str, Any]:
    """JSON values of one method."""
    values = {key: one.plain() for key, one in found.items()}
    return {
        "name": name,
        "n": next(iter(found.values())).n,
        **{key: value["value"] for key, value in values.items()},
        "intervals": {key: value["interval"] for key, value in values.items()},
    }
