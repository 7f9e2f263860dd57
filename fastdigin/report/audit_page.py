"""The page of an audit: what a classifier seems to go by, for people who never saw one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastdigin.report.page import write_page
from fastdigin.results.card import data_uri, without_folders
from fastdigin.results.numbers import percent

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.audit import Audit, Correlation, Disagreement, Effect, Explanation, Finding

PICTURES = 6
"""Explanations of a finding that are shown."""
ROWS = 12
"""Of the tables of what was not confirmed."""
ALMOST_SURE = 0.9999
"""No figure of a page says more."""
SENTENCES = {
    "background": "takes what stands on {feature} for a {class_}",
    "colour": "takes what is {feature} for a {class_}",
}
"""Attribute -> what a finding says; any other attribute has the general sentence."""
GENERAL = "goes by {attribute} “{feature}” when it says {class_}"


def write_audit_page(out: Path, found: Audit) -> Path:
    """Writes OUT/audit.html and returns its path; UserError where it cannot be written."""
    name, against = without_folders(found.classifier), without_folders(found.against or "")
    return write_page(
        out / "audit.html",
        "audit.html",
        eyebrow="fastdigin audit",
        heading=f"What does {name} go by{f' that {against} does not' * bool(against)}?",
        classifier=name,
        against=against,
        photos=found.photos,
        classes=found.classes,
        findings=[_finding(finding) for finding in found.findings],
        unconfirmed=[_row(f) for f in found.candidates if not f.found][:ROWS],
        unmeasured=found.unmeasured,
        correlations=[_row(c) for c in found.correlations if c.confidence >= 0.5][:ROWS],
        failed={without_folders(k): without_folders(v) for k, v in found.failed.items()},
        seconds=round(found.seconds),
    )


def _finding(finding: Finding) -> dict[str, Any]:
    effect, names = finding.effect, vars(finding)
    with_it, without = _with_and_without(effect, finding.feature)
    return {
        "sentence": SENTENCES.get(finding.attribute, GENERAL).format(**names),
        "class_": finding.class_,
        "attribute": finding.attribute,
        "feature": finding.feature,
        "confidence": percent(min(finding.confidence, ALMOST_SURE)),
        "with_it": with_it,
        "without": without,
        "points": f"{100 * effect.mean:.0f}",
        "interval": " to ".join(f"{100 * end:.0f}" for end in effect.interval),
        "count": effect.photos,
        "generated": effect.generated,
        "bars": [
            {"feature": f, "share": value, "text": percent(value), "own": f == finding.feature}
            for f, value in sorted(effect.by_feature.items(), key=lambda pair: -pair[1])
        ],
        "swapped": _swapped(effect, finding.class_),
        "rival": effect.rival,
        "neuron": finding.neuron,
        "named": finding.named,
        "pair": finding.pair and _pair(finding),
        "other": _other(finding) if finding.kind == "disagreement" else None,
        "explanations": [
            picture for x in finding.explanations[:PICTURES] for picture in _explained(x, finding)
        ],
        "asked": len(finding.explanations),
    }


def _other(finding: Disagreement) -> dict[str, Any]:
    with_it, without = _with_and_without(finding.against_effect, finding.feature)
    apart = finding.difference
    return {
        "goes_by_it": "does not" if finding.other_does_not else "goes by it less",
        "points": f"{100 * finding.against_effect.mean:+.0f}",
        "with_it": with_it,
        "without": without,
        "apart": f"{100 * apart.mean:.0f}",
        "interval": " to ".join(f"{100 * end:.0f}" for end in apart.interval),
    }


def _pair(finding: Finding) -> dict[str, Any]:
    effect = finding.pair.effect
    if effect is None:
        return {"class_": finding.pair.class_, "swapped": []}
    with_it, without = _with_and_without(effect, finding.feature)
    return {
        "class_": finding.pair.class_,
        "count": effect.photos,
        "with_it": with_it,
        "without": without,
        "swapped": _swapped(effect, finding.class_),
    }


def _with_and_without(effect: Effect, feature: str) -> tuple[str, str]:
    """The mean confidence with the feature, and the mean with the others."""
    others = [v for f, v in effect.by_feature.items() if f != feature]
    return percent(effect.by_feature[feature]), percent(sum(others) / len(others))


def _swapped(effect: Effect, class_: str) -> list[dict[str, Any]]:
    return [
        _picture(image, feature, f"{class_} {percent(confidence)}")
        for feature, (image, confidence) in effect.example.items()
    ]


def _explained(shown: Explanation, finding: Finding) -> list[dict[str, Any]]:
    """What it began with, and what it ended with."""

    def note(feature: str, confidence: float) -> str:
        return f"{feature}; {finding.class_} {percent(confidence)}"

    before = note(shown.feature_before, shown.confidence_before)
    after = note(shown.feature_after, shown.confidence_after)
    labels = shown.class_, "explanation"
    if finding.kind == "disagreement":
        labels = "first", "second"
        before += f", for the other {percent(shown.against_before)}"
        after += f", for the other {percent(shown.against_after)}"
    return [_picture(shown.before, labels[0], before), _picture(shown.after, labels[1], after)]


def _picture(image: Tensor, label: str, note: str) -> dict[str, Any]:
    return {"uri": data_uri(image), "label": label, "alt": f"{label}: {note}", "note": note}


def _row(found: Finding | Correlation) -> list[str]:
    effects = [found.effect] if found.kind == "correlation" else [e.mean for e in found.effects]
    points = [f"{100 * effect:+.0f} points" for effect in effects]
    return [found.class_, found.attribute, found.feature, *points, f"{found.confidence:.2f}"]
