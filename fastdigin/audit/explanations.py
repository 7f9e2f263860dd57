"""Explanations of what a classifier goes by: photos changed until it is surer of a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from fastdigin import presets
from fastdigin.audit.attributes import Attribute, confidences
from fastdigin.audit.effects import Swaps
from fastdigin.audit.findings import Explanation, Finding, Pair, named_features
from fastdigin.audit.photos import AuditPhoto, Material
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.tasks.neuron_counterfactual import (
    NeuronCounterfactuals,
    NeuronCounterfactualSettings,
)
from fastdigin.tasks.regularisers import Regulariser

STARTS = 3
"""Photos of a class that are explained for each attribute."""
PAIRED = 2
"""Of these, those that are also explained as the class that they are taken for."""
ITERATIONS = 2
"""Of an explanation: the search over words does most, and the rest only has to sharpen it."""


@dataclass(frozen=True)
class Raised:
    """Explains by neuron counterfactuals of classes' log-odds, and confirms by swaps."""

    swaps: Swaps

    @property
    def material(self) -> Material:
        return self.swaps.material

    @cached_property
    def pairs(self) -> dict[int, int]:
        """Class -> the one that is taken for it most."""
        return taken_most(self.material)

    def count(self, attribute: Attribute) -> int:
        """How many pictures will be made."""
        return len(self._plan(attribute))

    def explain(
        self, attribute: Attribute, on_progress: Callable[[float], None] | None
    ) -> tuple[dict[int, list[Explanation]], dict[str, str]]:
        """class -> its explanations; photo -> why it has none."""
        swaps, classifier, starts = self.swaps, self.material.classifier, self._plan(attribute)
        items = [
            replace(
                photo.item, image=photo.image, mask=photo.mask, crop=False, prompt=photo.prompt,
                source=str(photo.class_), source_word=photo.word, caption=None,
                background=photo.features[attribute.name],
            )
            for _, photo in starts
        ]  # fmt: skip
        task = NeuronCounterfactuals(
            engine=swaps.engine, photos=items, classifier=classifier.at_classes(),
            neuron=[class_ for class_, _ in starts], direction="max", backgrounds=attribute.reader,
            # They set the scale of each class's log-odds.
            dataset=[self.material.surest(class_).image for class_ in self.material.own],
            settings=explanation_settings(swaps.engine, attribute), seed=swaps.seed,
            tools=swaps.tools,
        )  # fmt: skip
        asked = dict(zip((request.id for request in task.requests), starts, strict=True))
        found: dict[int, list[Explanation]] = {}
        failed = {}
        for record in task.run(on_progress=on_progress):
            class_, photo = asked[record.id]
            if record.image is None:
                failed[record.id] = str(record.error)
                continue
            image = record.image.cpu()
            sure = confidences(classifier, torch.stack([photo.image, image]))[:, class_].tolist()
            found.setdefault(class_, []).append(
                Explanation(
                    photo.item.id, classifier.classes[photo.class_], photo.image, image,
                    record.background_before, record.background_after, *sure,
                )
            )  # fmt: skip
        return found, failed

    def findings(
        self, attribute: Attribute, class_: int, explanations: Sequence[Explanation]
    ) -> list[Finding]:
        """What the explanations of a class name, with its effect."""
        classifier = self.material.classifier
        name, other = classifier.classes[class_], self.pairs.get(class_)
        neuron = _neuron(
            classifier, class_, [x for x in explanations if x.class_ == name] or explanations
        )
        effects = self.swaps.measure(attribute, class_)(classifier, class_)
        pairs: Mapping[str, Pair] = {}
        if other is not None:
            taken = self.swaps.by_masks(attribute, other, classifier, class_)
            pairs = {f: Pair(classifier.classes[other], taken.get(f)) for f in effects}
        return [
            Finding(
                name, attribute.name, feature, effects[feature], tuple(explanations), neuron,
                pairs.get(feature),
            )
            for feature in named_features(explanations, name)
            if feature in effects
        ]  # fmt: skip

    def _plan(self, attribute: Attribute) -> list[tuple[int, AuditPhoto]]:
        """(class, photo): the photos of each class, and those of the class that is taken for it.

        Questions about one photo lie together, so that it is inverted once.
        """
        starts = {class_: self._starts(class_, attribute) for class_ in self.material.own}
        asked = [(c, n) for c, ns in starts.items() for n in ns]
        asked += [(c, n) for c, s in self.pairs.items() for n in starts[s][:PAIRED]]
        asked.sort(key=lambda one: (one[1], one[0]))
        return [(c, self.material.photos[n]) for c, n in asked]

    def _starts(self, class_: int, attribute: Attribute) -> list[int]:
        """The photos that the classifier is least sure of, of different features first."""
        photos, sure_nk = self.material.photos, self.material.sure_nk
        least = sorted(self.material.own[class_], key=lambda n: float(sure_nk[n, class_]))
        first: dict[str, int] = {}
        for n in least:
            first.setdefault(photos[n].features[attribute.name], n)
        different = list(first.values())
        return [*different, *(n for n in least if n not in different)][:STARTS]


def taken_most(material: Material) -> dict[int, int]:
    """Class -> the other one whose photos have the highest mean confidence in it."""
    taken = {c: material.sure_nk[list(own)].mean(dim=0) for c, own in material.own.items()}
    return {
        c: max((s for s in taken if s != c), key=lambda s, c=c: float(taken[s][c]))
        for c in taken
        if len(taken) > 1
    }


def explanation_settings(engine: Engine, attribute: Attribute) -> NeuronCounterfactualSettings:
    """The preset "fast" with few iterations; where the object has the attribute, all else is kept.

    Source: DiG-IN, section 4.4, with the background's role and the object's exchanged for objects.
    """
    settings = NeuronCounterfactuals.default_settings(engine.model)
    settings = presets.FAST.of(settings, NeuronCounterfactuals.name)
    few = min(ITERATIONS, settings.optimisation.iterations)
    settings = replace(
        settings,
        optimisation=replace(settings.optimisation, iterations=few),
        background_words=attribute.features,
    )
    if attribute.region == "background":
        return settings
    kept = tuple(Regulariser(r.kind, "background", r.weight) for r in settings.regularisers)
    return replace(settings, blending_fraction=0.0, regularisers=kept)


@torch.no_grad()
def _neuron(classifier: Classifier, class_: int, explanations: Sequence[Explanation]) -> int | None:
    """The neuron before a linear head that adds most to the class's logit in the explanations."""
    head = classifier.head
    if not isinstance(head, nn.Linear) or classifier.layer is not None:
        return None
    pairs = torch.stack([image for x in explanations for image in (x.before, x.after)])
    active = classifier.activations(pairs.to(classifier.device))
    gain_f = (active[1::2] - active[::2]).mean(dim=0) * head.weight[class_]
    return int(gain_f.argmax())
