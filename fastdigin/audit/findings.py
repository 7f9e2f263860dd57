"""What an audit found, and how sure it is. Plain values and statistics; no model is run here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev
from typing import Any

from torch import Tensor

MARGIN = 0.15
"""Effects above this make findings. Between the largest effects that classifiers without shortcuts
had by chance (0.12) and the smallest planted ones (0.19) on the worlds it was chosen on."""

NAMED = 1 / 3
"""A feature that so many explanations name is a candidate: the swaps decide, not the explanations,
which take a dark orange for yellow."""

FOUND = 0.5
"""Confidence from which a candidate counts as a finding."""


@dataclass(frozen=True)
class Explanation:
    """A photo, and the picture that the classifier is surer of.

    photo: its id, and class_ what it is for the classifier. before, after: (3, H, W) in [0, 1].
    Features and the confidence in the class that is explained are those of the photo and of the
    picture.
    """

    photo: str
    class_: str
    before: Tensor
    after: Tensor
    feature_before: str
    feature_after: str
    confidence_before: float
    confidence_after: float

    @property
    def names(self) -> str | None:
        """The feature that it says the classifier goes by."""
        return self.feature_after


@dataclass(frozen=True)
class Contrast(Explanation):
    """Two generated pictures of a class, of one noise, on which two classifiers part.

    The first is made for the other classifier to be sure and the audited one not; the second, the
    other way round. photo: names the pair. against_before, against_after: the other's confidence in
    the class.
    """

    against_before: float
    against_after: float

    @property
    def names(self) -> str | None:
        """What the second shows and the first does not, if it raised only the audited one's
        confidence by more than MARGIN."""
        audited = self.confidence_after - self.confidence_before
        other = self.against_after - self.against_before
        shown = self.feature_after if self.feature_after != self.feature_before else None
        return shown if audited > MARGIN >= other else None


@dataclass(frozen=True)
class Effect:
    """What swapping in a feature adds to the confidence in a class.

    mean: over photos, of the confidence with the feature less the mean with the others. error: the
    standard error of that. by_feature: the mean confidence with each feature. rival: the class
    that gains most where the feature is swapped out. example: the photo of the median gain, by
    feature: (3, H, W), and the confidence. generated: the diffusion model made the swaps, because
    the photos have no masks. gains: of each photo, in their order.
    """

    mean: float
    error: float
    photos: int
    by_feature: Mapping[str, float]
    rival: str | None
    example: Mapping[str, tuple[Tensor, float]]
    generated: bool = False
    gains: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


@dataclass(frozen=True)
class Pair:
    """The class whose photos are taken most for the class of a finding.

    effect: of the finding's feature on those photos; None where no masks let it be measured.
    """

    class_: str
    effect: Effect | None


@dataclass(frozen=True)
class Finding:
    """A feature that seems to stand for a class. neuron: the one that carries most of it.

    explanations: of photos of the class, and of photos of the other class of the pair.
    """

    class_: str
    attribute: str
    feature: str
    effect: Effect
    explanations: tuple[Explanation, ...]
    neuron: int | None = None
    pair: Pair | None = None

    kind = "shortcut"

    @property
    def effects(self) -> tuple[Effect, ...]:
        """On the audited classifier, and on the other one where there is one."""
        return (self.effect,)

    @property
    def named(self) -> int:
        """How many of the explanations name the feature."""
        return sum(x.names == self.feature for x in self.explanations)

    @property
    def confidence(self) -> float:
        """How surely the effect is above MARGIN, in [0, 1]."""
        return surely_above(MARGIN, self.effect.mean, self.effect.error)

    @property
    def found(self) -> bool:
        return self.confidence >= FOUND


@dataclass(frozen=True, kw_only=True)
class Disagreement(Finding):
    """A feature that seems to stand for a class to the audited classifier, and not to another.

    against: the other's name. against_effect: the feature's effect on it, by the same swaps.
    """

    against: str
    against_effect: Effect

    kind = "disagreement"

    @property
    def effects(self) -> tuple[Effect, ...]:
        return self.effect, self.against_effect

    @property
    def difference(self) -> Effect:
        """The effect less that on the other classifier, photo by photo."""
        pairs = zip(self.effect.gains, self.against_effect.gains, strict=True)
        gains = tuple(own - other for own, other in pairs)
        mean, error = mean_and_error(gains)
        return replace(self.effect, mean=mean, error=error, gains=gains)

    @property
    def other_does_not(self) -> bool:
        """Whether the other hardly goes by it, rather than less."""
        return self.against_effect.mean <= MARGIN

    @property
    def confidence(self) -> float:
        """How surely the effect, and what it has above that on the other, are above MARGIN.

        The difference alone would not do: what makes only the other classifier less sure has one.
        """
        apart = self.difference
        return min(super().confidence, surely_above(MARGIN, apart.mean, apart.error))


@dataclass(frozen=True)
class Correlation:
    """The baseline: photos of a class that have the feature against those that have another.

    effect: the difference of the mean confidences in the class.
    """

    class_: str
    attribute: str
    feature: str
    effect: float
    error: float
    photos: int

    kind = "correlation"

    @property
    def confidence(self) -> float:
        """How surely the effect is above MARGIN, in [0, 1]."""
        return surely_above(MARGIN, self.effect, self.error)


@dataclass(frozen=True)
class Audit:
    """All of it. candidates, correlations: the surest first. seconds: processor time of all.

    explanations: (class, attribute) -> all that were made, whatever they end with. against: the
    classifier that it was compared with, or None. unmeasured: (class, attribute, feature) that
    explanations name, but no swap could be made.
    """

    classifier: str
    photos: int
    classes: tuple[str, ...]
    explanations: Mapping[tuple[str, str], Sequence[Explanation]]
    candidates: tuple[Finding, ...]
    correlations: tuple[Correlation, ...]
    failed: Mapping[str, str]
    seconds: float
    against: str | None = None
    unmeasured: tuple[tuple[str, str, str], ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.candidates if finding.found)


def surely_above(margin: float, mean: float, error: float) -> float:
    """The normal probability that what was measured as ``mean`` is above ``margin``.

    0 where the error is infinite: one value shows nothing.
    """
    if not math.isfinite(error):
        return 0.0
    if error == 0:
        return float(mean > margin)
    return 1 - NormalDist(mean, error).cdf(margin)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; infinite for fewer than two values."""
    if len(values) < 2:
        return (fmean(values) if values else 0.0), math.inf
    return fmean(values), stdev(values) / math.sqrt(len(values))


def correlation(
    class_: str, attribute: str, feature: str, having: Sequence[float], others: Sequence[float]
) -> Correlation:
    """From the confidences in the class of photos with the feature and with others (Welch)."""
    (high, one), (low, two) = mean_and_error(having), mean_and_error(others)
    count = len(having) + len(others)
    return Correlation(class_, attribute, feature, high - low, math.hypot(one, two), count)


def named_features(explanations: Sequence[Explanation], class_: str) -> list[str]:
    """The features that a third of the explanations of the class's own photos name, or of others'.

    An explanation that names none counts all the same.
    """
    groups = [[x.names for x in explanations if (x.class_ == class_) == own]
              for own in (True, False)]  # fmt: skip
    counts = [(f, count / len(g)) for g in groups for f, count in Counter(g).items()]
    return list(dict.fromkeys(f for f, share in counts if f and share >= NAMED))


def plain(finding: Finding | Correlation) -> dict[str, Any]:
    """A line of JSON: the contract of ``fastdigin audit --json``."""
    line = {
        "kind": finding.kind,
        "class": finding.class_,
        "attribute": finding.attribute,
        "feature": finding.feature,
    }
    if isinstance(finding, Disagreement):
        line["against"] = finding.against
    if isinstance(finding, Correlation):
        evidence = {"photos": finding.photos, "standard_error": _finite(finding.error)}
        line["effect"] = round(finding.effect, 4)
    else:
        effect = finding.effect
        line["effect"] = round(effect.mean, 4)
        evidence = {
            "interval": [_finite(end) for end in effect.interval],
            "photos": effect.photos,
            "swaps": "generated" if effect.generated else "masks",
            "confidence_by_feature": {f: round(v, 4) for f, v in effect.by_feature.items()},
            "explanations": len(finding.explanations),
            "explanations_naming_it": finding.named,
            "photos_explained": [x.photo for x in finding.explanations],
            "rival": effect.rival,
            "neuron": finding.neuron,
            "pair": finding.pair and _plain_pair(finding.pair),
        }
        if isinstance(finding, Disagreement):
            del evidence["photos_explained"]  # what explains it starts from no photo
            for name in ("against_effect", "difference"):
                shown = getattr(finding, name)
                evidence[name] = round(shown.mean, 4)
                evidence[f"{name}_interval"] = [_finite(end) for end in shown.interval]
    return line | {"evidence": evidence, "confidence": round(finding.confidence, 4)}


def _plain_pair(pair: Pair) -> dict[str, Any]:
    effect = pair.effect
    if effect is None:
        return {"class": pair.class_, "effect": None}
    interval = [_finite(end) for end in effect.interval]
    return {
        "class": pair.class_,
        "effect": round(effect.mean, 4),
        "interval": interval,
        "photos": effect.photos,
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
