"""The page of the photos that activate neurons most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastdigin.report.photo_page import SHOWN, figure, gallery, left_out, write_photo_page

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.models.classifier import Classifier
    from fastdigin.retrieval import Activating


def write_activating_page(out: Path, classifier: Classifier, found: Activating) -> Path:
    """Writes OUT/activating.html and returns its path; UserError where it cannot be written."""
    each = max(1, SHOWN // len(found.top))
    sections = ""
    for neuron, best in found.top.items():
        low, high = found.ranges[neuron]
        figures = [figure(p.image, f"{value:.3g}", [p.id]) for value, p in best[:each]]
        sections += gallery(
            f"Neuron {neuron}, from {low:.3g} to {high:.3g}",
            figures, len(best) - each, "activating.jsonl",
        )  # fmt: skip
    layer = classifier.layer or "the layer before the head"
    return write_photo_page(
        out / "activating.html",
        "fastdigin activating",
        "Photos that activate neurons most",
        f"of {found.seen}, by {layer} of {classifier.name}",
        sections + left_out(found.unreadable),
    )
