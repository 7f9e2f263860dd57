"""The effects of features on a classifier's confidence, by the best swaps that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastdigin.audit.attributes import Attribute
from fastdigin.audit.findings import Effect
from fastdigin.audit.generated import generated_swap
from fastdigin.audit.photos import AuditPhoto, Material
from fastdigin.audit.swaps import masked_swap, measure_effects
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.tasks.sources import PhotoTools

SWAPPED = 30
"""Photos of a class on which an attribute is swapped, at most."""
GENERATED = 6
"""The same where the diffusion model has to make the swaps."""

Effects = Mapping[str, Effect]
"""By feature."""


@dataclass(frozen=True)
class Swaps:
    """Swaps an attribute on photos of a class: by masks, else on pictures that the model makes."""

    engine: Engine
    material: Material
    seed: int
    tools: PhotoTools

    def measure(self, attribute: Attribute, class_: int) -> Callable[[Classifier, int], Effects]:
        """What measures the effects on a classifier, in a class of its own, on the same swaps."""
        if len(self._masked(class_)) > 1:
            return lambda judge, judged: self.by_masks(attribute, class_, judge, judged)
        few = _spread(self.material.of_class(class_), GENERATED)
        swap = generated_swap(
            self.engine, self.material.classifier, attribute, few, self.seed, self.tools
        )
        return lambda judge, judged: measure_effects(
            judge, attribute, few, judged, swap, generated=True
        )

    def by_masks(
        self, attribute: Attribute, class_: int, judge: Classifier, judged: int
    ) -> Effects:
        """Of swaps by masks on photos of ``class_``; none where fewer than two have masks."""
        masked = self._masked(class_)
        if len(masked) < 2:
            return {}
        swap = masked_swap(attribute, self.material.photos)
        return measure_effects(judge, attribute, _spread(masked, SWAPPED), judged, swap)

    def _masked(self, class_: int) -> list[AuditPhoto]:
        return [photo for photo in self.material.of_class(class_) if photo.mask is not None]


def _spread(photos: Sequence[AuditPhoto], most: int) -> list[AuditPhoto]:
    """At most so many, spread evenly over all."""
    step = max(1, len(photos) / most)
    return [photos[int(n * step)] for n in range(min(most, len(photos)))]
