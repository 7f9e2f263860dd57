"""The figures of each task of ``fastdigin bench truth``, from rows of plain values.

A row is a finished job's record (`python -m fastdigin.results` tells its keys) with what
truth_tasks.py measured on its pictures:

    counterfactual         outside_l1, outside_l1_autoencoder: of the photo to the result and to
                           its round trip through the autoencoder, outside the union of the
                           garment's true mask and the automatic one, within which the edit was
                           allowed. outside_true_l1: outside the true mask alone
    disagreement           seen_before, seen: what the background classifier sees
    neuron-counterfactual  inside_l1: of the photo to the result, inside the garment's true mask.
                           inside_l1_autoencoder, inside_l1_inversion: to its round trip through
                           the autoencoder, and to what the inversion makes of it

L1 is per pixel and channel in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdigin import embedded
from fastdigin.results import NeuronRecord
from fastdigin_bench.figures import Figure, Target, at_least, at_most, mean, rate, ratio

Rows = Sequence[Mapping[str, Any]]


def counterfactual_figures(rows: Rows, judge_target: Target | None) -> list[Figure]:
    """Does the classifier see the target, does the judge, and was the rest left alone?"""
    changed, own = _column(rows, "outside_l1"), _column(rows, "outside_l1_autoencoder")
    return [
        rate("flips to the target", _column(rows, "flipped"), at_least(0.95)),
        rate(
            "judge sees the target",
            [row["judge_prediction"] == row["target"] for row in rows],
            judge_target,
        ),
        mean("target confidence before", _column(rows, "target_confidence_before")),
        mean("target confidence after", _column(rows, "target_confidence")),
        mean("L1 outside both masks", changed),
        mean("L1 outside both masks, autoencoder alone", own),
        ratio("L1 outside both masks, ratio", changed, own, at_most(1.5)),
        mean("L1 outside the true mask alone", _column(rows, "outside_true_l1")),
    ]


def disagreement_figures(rows: Rows) -> list[Figure]:
    """Do f and g part, and does the background that g was taught to want go away?"""
    pairs = [(row["f_confidence"], row["g_confidence"]) for row in rows]
    planted = [embedded.PLANTED[row["class"]] for row in rows]
    before, after = (
        [row[key] == background for row, background in zip(rows, planted, strict=True)]
        for key in ("seen_before", "seen")
    )
    return [
        rate(
            "f at least 0.9, g at most 0.1",
            [f >= 0.9 and g <= 0.1 for f, g in pairs],
            at_least(0.8),
        ),
        rate("f leads g by at least 0.5", [f - g >= 0.5 for f, g in pairs]),
        mean("f before", _column(rows, "f_confidence_before")),
        mean("f after", _column(rows, "f_confidence")),
        mean("g before", _column(rows, "g_confidence_before")),
        mean("g after", _column(rows, "g_confidence")),
        rate("planted background before", before),
        rate("planted background after", after),
    ]


def neuron_figures(rows: Rows) -> list[Figure]:
    """Does the image excite the neuron more than any packaged photo?"""
    records = [NeuronRecord.from_dict({"id": "", "task": "neurons", **row}) for row in rows]
    multiples = [record.share_of_maximum for record in records]
    return [
        rate("above each of the photos", [bool(r.above_dataset) for r in records], at_least(0.8)),
        mean("multiple of the photos' maximum", [m for m in multiples if m is not None]),
    ]


def neuron_counterfactual_figures(rows: Rows) -> list[Figure]:
    """Does the neuron's planted background come and go, while the garment stays?"""
    raised, lowered = ([r for r in rows if r["direction"] == d] for d in ("max", "min"))
    moved = [(r["activation"] > r["activation_before"]) == (r["direction"] == "max") for r in rows]
    changed, own = _column(rows, "inside_l1"), _column(rows, "inside_l1_inversion")
    return [
        rate("activation moves as asked", moved),
        rate("raised: planted background appears", _shows_planted(raised), at_least(0.8)),
        mean("raised: activation before", _column(raised, "activation_before")),
        mean("raised: activation after", _column(raised, "activation")),
        rate(
            "lowered: planted background vanishes",
            [not shown for shown in _shows_planted(lowered)],
            at_least(0.8),
        ),
        mean("lowered: activation before", _column(lowered, "activation_before")),
        mean("lowered: activation after", _column(lowered, "activation")),
        mean("L1 inside the true mask", changed),
        mean("L1 inside the true mask, reconstruction", own),
        ratio("L1 inside the true mask, ratio", changed, own, at_most(1.5)),
        mean("L1 inside the true mask, autoencoder alone", _column(rows, "inside_l1_autoencoder")),
    ]


def _shows_planted(rows: Rows) -> list[bool]:
    background_of = {n: b for b, ns in embedded.planted_neurons().items() for n in ns}
    return [row["background_after"] == background_of[row["neuron"]] for row in rows]


def _column(rows: Rows, key: str) -> list:
    return [row[key] for row in rows]
