"""What does a classifier go by? Explanations are made, read, and confirmed on photos.

``fastdigin audit`` prints the findings; :func:`audit` returns them. For every class of the photos
and every attribute (the background, the object's colour) the method is

1. *explain*: neuron counterfactuals of the class's log-odds raise the classifier's confidence while
   the other region of the photo is kept; the words of all features are tried as starts;
2. *read*: a classifier of the attribute says which feature the explanations ended with; one that
   at least half of a class's explanations ended with is a candidate;
3. *confirm*: that attribute alone is swapped on photos of the class; the effect is the mean
   confidence with the feature less the mean with the other ones.

A candidate whose effect is surely above ``MARGIN`` is a finding. Beside them stand the correlations
of features with confidences, which need no explanation: the baseline.
"""

from fastdigin.audit.attributes import Attribute, embedded_attributes
from fastdigin.audit.findings import MARGIN, Audit, Correlation, Explanation, Finding
from fastdigin.audit.search import audit

__all__ = [
    "MARGIN",
    "Attribute",
    "Audit",
    "Correlation",
    "Explanation",
    "Finding",
    "audit",
    "embedded_attributes",
]
