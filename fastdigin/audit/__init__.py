"""What does a classifier go by? Explanations are made, read, and confirmed on photos.

``fastdigin audit`` prints the findings; :func:`audit` returns them. For every class of the photos
and every attribute (the background, the object's colour) the method is

1. *explain*: neuron counterfactuals of the class's log-odds raise the classifier's confidence while
   the other region of the photo is kept; the words of all features are tried as starts. They start
   from photos of the class, and from photos of the class that is taken for it most (the pair);
2. *read*: a classifier of the attribute says which feature the explanations ended with; one that
   a third of the former, or of the latter, ended with is a candidate;
3. *confirm*: that attribute alone is swapped on photos of the class; the effect is the mean
   confidence with the feature less the mean with the other ones.

A candidate whose effect is surely above ``MARGIN`` is a finding. The same swap on photos of the
pair's other class says how far the feature makes the classifier confuse the two. Beside the
findings stand the correlations of features with confidences, which need no explanation: the
baseline.

Given another classifier (``against``), the question is what only the audited one goes by. It is
explained by pictures on which the two part (fastdigin.audit.disagreements), and a candidate is a
finding (:class:`Disagreement`) where its effect, and what that has above the effect on the other
classifier on the same photos, are both surely above ``MARGIN``.
"""

from fastdigin.audit.attributes import Attribute, embedded_attributes
from fastdigin.audit.findings import (
    MARGIN,
    Audit,
    Contrast,
    Correlation,
    Disagreement,
    Effect,
    Explanation,
    Finding,
    Pair,
)
from fastdigin.audit.search import audit

__all__ = [
    "MARGIN",
    "Attribute",
    "Audit",
    "Contrast",
    "Correlation",
    "Disagreement",
    "Effect",
    "Explanation",
    "Finding",
    "Pair",
    "audit",
    "embedded_attributes",
]
