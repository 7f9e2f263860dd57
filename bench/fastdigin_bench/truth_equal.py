"""When are other settings as good as a baseline? What ``bench truth --compare`` calls equal.

- The loss in flips, in the judge's agreement and in planted backgrounds that do as asked is at most
  3 points: its upper 95% bound, one-sided and paired (the score interval of Tango 1998, in which no
  change among few cases proves nothing).
- L1, as a ratio to what the autoencoder alone does to the photo, grows by at most 5%. (The ratio of
  neuron counterfactuals in truth.json is to the inversion, and would call a better one a loss.)
- There are at least 200 pairs, of the photos to report on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from fastdigin.metrics.figures import Value, figures_of, resampled_sums
from fastdigin_bench.truth_rows import TARGETS, Row

LEAST_PAIRS = 200
LOSS_BOUND, GROWTH_BOUND = 0.03, 0.05
ONE_SIDED = 1.645  # standard errors to a one-sided 95% bound
COUNTERFACTUAL = "counterfactual-robust"
LOSSES = {  # name -> (part, figures of which a record has one)
    "flips": (COUNTERFACTUAL, ("flips to the target",)),
    "judge": (COUNTERFACTUAL, ("judge sees the target",)),
    "planted backgrounds": (
        "neuron-counterfactual",
        ("raised: planted background appears", "lowered: planted background vanishes"),
    ),
}
CHANGED = {  # part -> how much changed where nothing should; ", autoencoder alone" beside it
    COUNTERFACTUAL: "L1 outside both masks",
    "neuron-counterfactual": "L1 inside the true mask",
}

Rows = Mapping[str, Row]
"""job id -> row."""


def compared(before: Mapping[str, Rows], after: Mapping[str, Rows], half: str) -> dict[str, Any]:
    """What a setting reaches beside the baseline: all figures, losses, and whether it is equal."""
    figures = {
        part: [f.plain() for f in figures_of(list(rows.values()), TARGETS[part])]
        for part, rows in after.items()
    }
    losses, why = {}, []
    for name, (part, keys) in LOSSES.items():
        if part in after:
            losses[name] = loss = paired_loss(*_pairs(before[part], after[part], keys))
            if not loss["upper"] <= LOSS_BOUND:
                why.append(f"the loss in {name} may be {loss['upper']:.1%}, more than 3 points")
    growth = {}
    for part, key in CHANGED.items():
        if not after.get(part):
            continue
        both = [id for id in after[part] if id in before[part]]
        old, new = (
            [(rows[id][key], rows[id][f"{key}, autoencoder alone"]) for id in both]
            for rows in (before[part], after[part])
        )
        growth[part] = found = paired_growth(old, new)
        if not found["value"] <= GROWTH_BOUND:
            why.append(f"L1 of {part} grows by {found['value']:.1%}, more than 5%")
    count = losses.get("judge", {"n": 0})["n"]
    if half != "reporting" or count < LEAST_PAIRS:
        why.append(f"{count} pairs of the {half} photos, wanted {LEAST_PAIRS} to report on")
    if missing := [name for name in LOSSES if name not in losses]:
        why.append(f"not measured: {', '.join(missing)}")
    return {
        "equal": not why, "why": why, "losses": losses, "l1_growth": growth, "figures": figures,
    }  # fmt: skip


def _pairs(before: Rows, after: Rows, keys: Sequence[str]) -> tuple[list[Value], list[Value]]:
    """The values that both have, job by job, of whichever key a job has one of."""
    both = [(before[id][key], after[id][key]) for id in after if id in before for key in keys]
    both = [(a, b) for a, b in both if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def paired_loss(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """The share of cases that were lost, gains taken off, and its one-sided upper 95% bound."""
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    n = len(before)
    value = (lost - gained) / n if n else 0.0
    low, high = value, 1.0
    for _ in range(40 if n else 0):  # the loss that is as much as ONE_SIDED errors away
        middle = (low + high) / 2
        if n * (middle - value) < ONE_SIDED * _error(lost, gained, n, middle):
            low = middle
        else:
            high = middle
    return {"value": round(value, 4), "upper": round(high, 4), "n": n}


def _error(lost: int, gained: int, n: int, loss: float) -> float:
    """Of lost - gained, if the true loss were ``loss`` (Tango 1998, equations 7 and 11)."""
    b, c = (2 * n - lost + gained) * loss - lost - gained, -gained * loss * (1 - loss)
    gain = (sqrt(b * b - 8 * n * c) - b) / (4 * n)
    return sqrt(n * max(2 * gain + loss * (1 - loss), 0))


def paired_growth(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """By how much a ratio of means grows, with the bootstrap's 95% interval over the jobs."""
    cases = np.hstack([np.asarray(after, float), np.asarray(before, float)])

    def growth(sums):
        new, new_own, old, old_own = sums.T
        return new / new_own * old_own / old - 1

    low, high = np.percentile(growth(resampled_sums(cases)), [2.5, 97.5])
    value = float(growth(cases.sum(axis=0)))
    interval = [round(float(end), 4) for end in (low, high)]
    return {"value": round(value, 4), "interval": interval, "n": len(cases)}
