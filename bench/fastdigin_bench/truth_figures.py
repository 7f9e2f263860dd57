"""The figures of each task of ``fastdigin bench truth``, from its records and a look at each.

A look is what truth_tasks.py measured on the pictures of a record. L1 is per pixel and channel in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdigin import embedded
from fastdigin.results import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronCounterfactualRecord,
    NeuronRecord,
)
from fastdigin_bench.figures import Figure, Target, at_least, at_most, mean, rate, ratio


@dataclass(frozen=True)
class Outside:
    """L1 of the photo outside of the union of the garment's true mask and the automatic one.

    Within that union the edit was allowed. result, autoencoder: to the result, and to the photo's
    round trip through the autoencoder. result_true_mask: to the result, outside of the true mask
    alone.
    """

    result: float
    autoencoder: float
    result_true_mask: float


@dataclass(frozen=True)
class Inside:
    """L1 of the photo inside the garment's true mask.

    To the result, to the photo's round trip through the autoencoder, and to what the inversion
    makes of it.
    """

    result: float
    autoencoder: float
    inversion: float


@dataclass(frozen=True)
class Backgrounds:
    """What the background classifier sees in the first image and in the result."""

    before: str
    after: str


def counterfactual_figures(
    records: Sequence[CounterfactualRecord], looks: Sequence[Outside], judge_target: Target | None
) -> list[Figure]:
    """Does the classifier see the target, does the judge, and was the rest left alone?"""
    changed, own = [o.result for o in looks], [o.autoencoder for o in looks]
    return [
        rate("flips to the target", [r.flipped for r in records], at_least(0.95)),
        rate("judge sees the target", [r.judge_agrees for r in records], judge_target),
        mean("target confidence before", [r.target_confidence_before for r in records]),
        mean("target confidence after", [r.target_confidence for r in records]),
        mean("L1 outside both masks", changed),
        mean("L1 outside both masks, autoencoder alone", own),
        ratio("L1 outside both masks, ratio", changed, own, at_most(1.5)),
        mean("L1 outside the true mask alone", [o.result_true_mask for o in looks]),
    ]


def disagreement_figures(
    records: Sequence[DisagreementRecord], looks: Sequence[Backgrounds]
) -> list[Figure]:
    """Do f and g part, and does the background that g was taught to want go away?"""
    parted = [r.f_confidence >= 0.9 and r.g_confidence <= 0.1 for r in records]
    planted = [embedded.PLANTED[r.class_] for r in records]
    seen = list(zip(looks, planted, strict=True))
    return [
        rate("f at least 0.9, g at most 0.1", parted, at_least(0.8)),
        rate("f leads g by at least 0.5", [r.gap >= 0.5 for r in records]),
        mean("f before", [r.f_confidence_before for r in records]),
        mean("f after", [r.f_confidence for r in records]),
        mean("g before", [r.g_confidence_before for r in records]),
        mean("g after", [r.g_confidence for r in records]),
        rate("planted background before", [look.before == home for look, home in seen]),
        rate("planted background after", [look.after == home for look, home in seen]),
    ]


def neuron_figures(records: Sequence[NeuronRecord]) -> list[Figure]:
    """Does the image excite the neuron more than any packaged photo?"""
    multiples = [r.share_of_maximum for r in records if r.share_of_maximum is not None]
    return [
        rate("above each of the photos", [bool(r.above_dataset) for r in records], at_least(0.8)),
        mean("multiple of the photos' maximum", multiples),
    ]


def neuron_counterfactual_figures(
    records: Sequence[NeuronCounterfactualRecord], looks: Sequence[Inside]
) -> list[Figure]:
    """Does the neuron's planted background come and go, while the garment stays?"""
    raised, lowered = ([r for r in records if r.direction == way] for way in ("max", "min"))
    moved = [(r.activation > r.activation_before) == (r.direction == "max") for r in records]
    vanished = [not shown for shown in _shows_planted(lowered)]
    changed, own = [look.result for look in looks], [look.inversion for look in looks]
    return [
        rate("activation moves as asked", moved),
        rate("raised: planted background appears", _shows_planted(raised), at_least(0.8)),
        mean("raised: activation before", [r.activation_before for r in raised]),
        mean("raised: activation after", [r.activation for r in raised]),
        rate("lowered: planted background vanishes", vanished, at_least(0.8)),
        mean("lowered: activation before", [r.activation_before for r in lowered]),
        mean("lowered: activation after", [r.activation for r in lowered]),
        mean("L1 inside the true mask", changed),
        mean("L1 inside the true mask, reconstruction", own),
        ratio("L1 inside the true mask, ratio", changed, own, at_most(1.5)),
        mean("L1 inside the true mask, autoencoder alone", [look.autoencoder for look in looks]),
    ]


def _shows_planted(records: Sequence[NeuronCounterfactualRecord]) -> list[bool]:
    background_of = {n: b for b, ns in embedded.planted_neurons().items() for n in ns}
    return [r.background_after == background_of[r.neuron] for r in records]
