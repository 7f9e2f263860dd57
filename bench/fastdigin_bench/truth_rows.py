"""What ``fastdigin bench truth`` reads off one record of a task, and off its pictures.

A row has a value for each figure: a truth value for a share, a number for a mean, a pair for a
ratio of means, None where a record does not count. L1 is per pixel and channel in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastdigin import embedded
from fastdigin.metrics.distances import masked_l1
from fastdigin.metrics.figures import Target, Value, at_least, at_most
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronCounterfactualRecord,
    NeuronRecord,
)
from fastdigin.results.pictures import read_picture
from fastdigin_bench.pictures import round_trip

Row = dict[str, Value]

L1_RATIO = {
    "counterfactual": "L1 outside both masks, ratio",
    "neuron-counterfactual": "L1 inside the true mask, ratio",
}
TARGETS: Mapping[str, Mapping[str, Target]] = {
    # A robust classifier's reasons should convince others; a clean one's may be its own.
    "counterfactual-clean": {
        "flips to the target": at_least(0.95),
        L1_RATIO["counterfactual"]: at_most(1.5),
    },
    "counterfactual-robust": {
        "flips to the target": at_least(0.95),
        "judge sees the target": at_least(0.75),
        L1_RATIO["counterfactual"]: at_most(1.5),
    },
    "disagreement": {"f at least 0.9, g at most 0.1": at_least(0.8)},
    "neurons": {"above each of the photos": at_least(0.8)},
    "neuron-counterfactual": {
        "raised: planted background appears": at_least(0.8),
        "lowered: planted background vanishes": at_least(0.8),
        L1_RATIO["neuron-counterfactual"]: at_most(1.5),
    },
}


def counterfactual_row(
    model: LatentDiffusion, record: CounterfactualRecord, photo: embedded.Photo
) -> Row:
    """Does the classifier see the target, does the judge, and was the rest left alone?

    The edit is allowed within the union of the garment's true mask and the automatic one.
    """
    original, true = read_picture(photo.path), read_picture(photo.mask_path)
    forbidden = 1 - torch.maximum(true, record.mask)
    changed = masked_l1(record.image, original, forbidden)
    own = masked_l1(round_trip(model, original), original, forbidden)
    return {
        "flips to the target": record.flipped,
        "judge sees the target": record.judge_agrees,
        "target confidence before": record.target_confidence_before,
        "target confidence after": record.target_confidence,
        "L1 outside both masks": changed,
        "L1 outside both masks, autoencoder alone": own,
        L1_RATIO["counterfactual"]: (changed, own),
        "L1 outside the true mask alone": masked_l1(record.image, original, 1 - true),
    }


def disagreement_row(record: DisagreementRecord, before: str, after: str) -> Row:
    """Do f and g part, and does the background that g was taught to want go away?

    before, after: the background that is seen in the first image and in the result.
    """
    home = embedded.PLANTED[record.class_]
    return {
        "f at least 0.9, g at most 0.1": record.f_confidence >= 0.9 and record.g_confidence <= 0.1,
        "f leads g by at least 0.5": record.gap >= 0.5,
        "f before": record.f_confidence_before,
        "f after": record.f_confidence,
        "g before": record.g_confidence_before,
        "g after": record.g_confidence,
        "planted background before": before == home,
        "planted background after": after == home,
    }


def neuron_row(record: NeuronRecord) -> Row:
    """Does the image excite the neuron more than any packaged photo?"""
    return {
        "above each of the photos": bool(record.above_dataset),
        "multiple of the photos' maximum": record.share_of_maximum,
    }


def neuron_counterfactual_row(
    model: LatentDiffusion, record: NeuronCounterfactualRecord, photo: embedded.Photo
) -> Row:
    """Does the neuron's planted background come and go, while the garment stays?"""
    original, true = read_picture(photo.path), read_picture(photo.mask_path)
    changed, own, autoencoder = (
        masked_l1(image, original, true)
        for image in (record.image, record.initial_image, round_trip(model, original))
    )
    (home,) = (b for b, neurons in embedded.planted_neurons().items() if record.neuron in neurons)
    shown, before, after = (
        record.background_after == home, record.activation_before, record.activation
    )  # fmt: skip
    raised, lowered = record.direction == "max", record.direction == "min"
    return {
        "activation moves as asked": (after > before) == raised,
        "raised: planted background appears": shown if raised else None,
        "raised: activation before": before if raised else None,
        "raised: activation after": after if raised else None,
        "lowered: planted background vanishes": not shown if lowered else None,
        "lowered: activation before": before if lowered else None,
        "lowered: activation after": after if lowered else None,
        "L1 inside the true mask": changed,
        "L1 inside the true mask, reconstruction": own,
        L1_RATIO["neuron-counterfactual"]: (changed, own),
        "L1 inside the true mask, autoencoder alone": autoencoder,
    }
