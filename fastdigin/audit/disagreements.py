"""Explanations of what a classifier goes by and another does not: pictures on which they part.

From one noise two disagreements of each class are made (DiG-IN, section 4.1): the other classifier
shall be sure of the class in the first and the audited one not; in the second, the reverse. As in
the audit of one classifier the words of all features are tried as starts, since optimisation alone
seldom replaces a background. What the second picture shows and the first does not is what the
audited classifier alone seems to go by (:class:`Contrast` has the rule).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fastdigin.audit.attributes import Attribute
from fastdigin.audit.effects import Swaps
from fastdigin.audit.findings import Contrast, Disagreement, named_features
from fastdigin.engine.job import Job
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.tasks.disagreement import DisagreementRequest, Disagreements
from fastdigin.tasks.words import same_class

CONTRASTS = 3
"""Pairs of pictures of a class for each attribute."""
ITERATIONS = 2
"""Of a picture: the search over words does most, and the rest only has to sharpen it."""
STEPS = 10
"""Of a sample, at most: those of the preset "fast"."""


@dataclass(kw_only=True)
class WordedDisagreements(Disagreements):
    """Disagreements that start from the best of several prompts, not of several draws.

    pairs: the classes, by their index for f and for g. prompts: of the n-th image of a class, with
    {} for the class.
    """

    pairs: Sequence[tuple[int, int]]
    prompts: Sequence[Sequence[str]]

    def class_pairs(self) -> list[tuple[int, int]]:
        return list(self.pairs)

    def candidates(self, request: DisagreementRequest) -> list[Job]:
        return [self.job(request, prompt, draw=0) for prompt in self.prompts[request.number]]


def shared_classes(
    classifier: Classifier, against: Classifier, classes: Sequence[int]
) -> dict[int, int]:
    """Those of ``classes`` that the other knows too -> its index of them. UserError for none."""
    numbers = range(len(against.classes))
    found = {c: n for c in classes for n in numbers if same_class(classifier, c, against, n)}
    if not found:
        names = ", ".join(classifier.classes[c] for c in classes)
        raise UserError(
            f"{classifier.name} sees {names} in the photos, and {against.name} has none of these "
            "classes: compare it with a classifier that has them"
        )
    return found


@dataclass(frozen=True)
class Contrasted:
    """Explains by pictures on which two classifiers part, and confirms by swaps.

    shared: class -> the other's index of it. prompt: as for the audit.
    """

    swaps: Swaps
    against: Classifier
    shared: Mapping[int, int]
    attributes: Sequence[Attribute]
    prompt: str

    def count(self, attribute: Attribute) -> int:
        """How many pictures will be made."""
        return 2 * CONTRASTS * len(self.shared)

    def explain(
        self, attribute: Attribute, on_progress: Callable[[float], None] | None
    ) -> tuple[dict[int, list[Contrast]], dict[str, str]]:
        """class -> its contrasts; picture -> why it could not be made."""
        classifier, prompts = self.swaps.material.classifier, self._prompts(attribute)
        firsts, seconds, failed = {}, {}, {}
        for f, g, made in (
            (self.against, classifier, firsts), (classifier, self.against, seconds)
        ):  # fmt: skip
            task = self._task(f, g, attribute, prompts)
            asked = {
                r.id: (r.f_class if f is classifier else r.g_class, r.number) for r in task.requests
            }
            for record in task.run(on_progress=on_progress):
                if record.image is None:
                    failed[f"{record.id}, {f.name} and not {g.name}"] = str(record.error)
                else:
                    made[asked[record.id]] = record
        found: dict[int, list[Contrast]] = {}
        for class_, number in sorted(firsts.keys() & seconds.keys()):
            first, second = firsts[class_, number], seconds[class_, number]
            images = [first.image.cpu(), second.image.cpu()]
            found.setdefault(class_, []).append(
                Contrast(
                    second.id, classifier.classes[class_], *images,
                    *attribute.read(torch.stack(images)),
                    first.g_confidence, second.f_confidence, first.f_confidence,
                    second.g_confidence,
                )
            )  # fmt: skip
        return found, failed

    def findings(
        self, attribute: Attribute, class_: int, explanations: Sequence[Contrast]
    ) -> list[Disagreement]:
        """What the contrasts of a class name, with its effect on both classifiers.

        No neuron: the two pictures of a contrast differ in their objects too.
        """
        classifier = self.swaps.material.classifier
        measured, name = self.swaps.measure(attribute, class_), classifier.classes[class_]
        effects = measured(classifier, class_)
        theirs = measured(self.against, self.shared[class_])
        return [
            Disagreement(
                name, attribute.name, feature, effects[feature], tuple(explanations), None, None,
                against=self.against.name, against_effect=theirs[feature],
            )
            for feature in named_features(explanations, name)
            if feature in effects
        ]  # fmt: skip

    def _prompts(self, attribute: Attribute) -> list[list[str]]:
        """Of each of a class's pictures, one for each feature.

        The n-th ones of a class have the n-th feature of every other attribute.
        """
        prompts = []
        for number in range(CONTRASTS):
            others = {a.name: a.features[number % len(a.features)] for a in self.attributes}
            words = ({**others, attribute.name: feature} for feature in attribute.features)
            prompts.append([self.prompt.format(object="{}", **known) for known in words])
        return prompts

    def _task(
        self, f: Classifier, g: Classifier, attribute: Attribute, prompts: list[list[str]]
    ) -> WordedDisagreements:
        swaps = self.swaps
        pairs = [(n, c) if f is self.against else (c, n) for c, n in self.shared.items()]
        settings = Disagreements.default_settings(swaps.engine.model)
        usual = settings.optimisation
        settings = replace(
            settings,
            optimisation=replace(usual, iterations=ITERATIONS, steps=min(STEPS, usual.steps)),
            prompt=prompts[0][0],
            draws=len(attribute.features),
        )
        return WordedDisagreements(
            engine=swaps.engine, f=f, g=g, classes=[c for c, _ in pairs], pairs=pairs,
            prompts=prompts, seeds=CONTRASTS, settings=settings, seed=swaps.seed,
        )  # fmt: skip
