"""The audit: what is explained, how it is read, and what becomes a candidate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fastdigin import presets
from fastdigin.audit.attributes import (
    Attribute,
    AuditPhoto,
    confidences,
    embedded_attributes,
    read_photos,
)
from fastdigin.audit.disagreements import CONTRASTS, contrasts, shared_classes
from fastdigin.audit.findings import (
    Audit,
    Correlation,
    Disagreement,
    Explanation,
    Finding,
    Pair,
    correlation,
)
from fastdigin.audit.generated import generated_swap
from fastdigin.audit.swaps import masked_swap, measure_effects
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.tasks.disagreement import same_network
from fastdigin.tasks.neuron_counterfactual import (
    NeuronCounterfactuals,
    NeuronCounterfactualSettings,
)
from fastdigin.tasks.regularisers import Regulariser
from fastdigin.tasks.sources import NO_TOOLS, PhotoTools

PROMPT = "a photo of a {colour} {object} on {background}"
"""In the words of the embedded model, which heeds no background without a colour."""
MOST_CLASSES = 12
STARTS = 3
"""Photos of a class that are explained for each attribute."""
PAIRED = 2
"""Of these, those that are also explained as the class that they are taken for."""
SWAPPED = 30
"""Photos of a class on which an attribute is swapped, at most."""
GENERATED = 6
"""The same where the diffusion model has to make the swaps."""
ITERATIONS = 2
"""Of an explanation: the search over words does most, and the rest only has to sharpen it."""


def audit(
    engine: Engine,
    classifier: Classifier,
    photos: Sequence[ImageInput],
    attributes: Sequence[Attribute] | None = None,
    *,
    against: Classifier | None = None,
    prompt: str = PROMPT,
    seed: int = 0,
    tools: PhotoTools = NO_TOOLS,
    on_plan: Callable[[int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Audit:
    """Finds the features that a classifier takes for its classes.

    Args:
        engine: makes the explanations.
        classifier: is audited.
        photos: with or without labels (``source``) and masks. Effects are measured by masks on
            photos that have them, else on pictures that the diffusion model makes.
        attributes: what it might go by; None takes background and colour of the embedded world.
        against: another classifier of these classes: what does it not go by? Findings are
            :class:`Disagreement` then.
        prompt: describes a photo: {object}, and {NAME} for each attribute.
        seed: of the explanations.
        tools: what may help to prepare photos.
        on_plan: called with the number of explanations before they are made.
        on_progress: called with the share of one explanation's work that was just done.

    Returns:
        All candidates, the surest first; ``Audit.findings`` are those to believe.

    Raises:
        UserError: no class has two photos, or a photo cannot be read; ``against`` is the classifier
            itself, or knows none of the photos' classes.

    Example:
        >>> from fastdigin.audit import audit
        >>> spurious = fd.Classifier.load("embedded:spurious")
        >>> for f in audit(engine, spurious, fd.collect(["embedded:photos"])).findings:
        ...     print(f.class_, f.attribute, f.feature, f.effect.mean, f.confidence)
    """
    began = time.process_time()
    if against is not None and same_network(classifier, against):
        raise UserError(
            f"against is {against.name}, the audited classifier itself, which goes by the same: "
            "name another one"
        )
    attributes = embedded_attributes() if attributes is None else attributes
    read = read_photos(classifier, photos, attributes, prompt, engine.model.image_size)
    counts = Counter(photo.class_ for photo in read).most_common(MOST_CLASSES)
    classes = sorted(class_ for class_, count in counts if count > 1)
    if not classes:
        raise UserError(
            f"no class of {classifier.name} has two photos among the {len(read)} given: give more"
        )
    if against is not None:
        shared = shared_classes(classifier, against, classes)
        classes = list(shared)
    sure = confidences(classifier, torch.stack([photo.image for photo in read]))
    own = {c: [n for n, photo in enumerate(read) if photo.class_ == c] for c in classes}
    pairs = _pairs(classes, own, sure) if against is None else {}
    plan = [(attribute, _plan(own, pairs, read, sure, attribute)) for attribute in attributes]
    if on_plan:
        most = 2 * CONTRASTS * len(classes) * len(attributes)
        on_plan(most if against else sum(len(starts) for _, starts in plan))
    surest = [read[max(own[c], key=lambda n: float(sure[n, c]))].image for c in classes]
    kind = Finding if against is None else partial(Disagreement, against=against.name)
    candidates: list[Finding] = []
    made: dict[tuple[str, str], Sequence[Explanation]] = {}
    failed: dict[str, str] = {}
    for attribute, starts in plan:
        if against is None:
            by_class, errors = _explain(
                engine, classifier, attribute, starts, surest, seed, tools, on_progress
            )
        else:
            by_class, errors = contrasts(
                engine, classifier, against, shared, attribute, attributes, prompt, seed,
                on_progress,
            )  # fmt: skip
        failed |= errors
        for class_, explanations in by_class.items():
            name = classifier.classes[class_]
            made[name, attribute.name] = explanations
            # The two pictures of a contrast differ in their objects too: no neuron is told by them.
            of_class = [x for x in explanations if x.class_ == name] or explanations
            neuron = None if against else _neuron(classifier, class_, of_class)
            group = [read[n] for n in own[class_]]
            measured = _measured(engine, classifier, attribute, group, read, seed, tools)
            effects = measured(classifier, class_)
            theirs = {} if against is None else measured(against, shared[class_])
            other = pairs.get(class_)
            others = [] if other is None else [read[n] for n in own[other]]
            taken = _effects_by_masks(classifier, attribute, others, read, class_) or {}
            candidates += [
                kind(
                    name, attribute.name, feature, effects[feature],
                    tuple(explanations), neuron,
                    None if other is None else Pair(classifier.classes[other], taken.get(feature)),
                    **({"against_effect": theirs[feature]} if theirs else {}),
                )
                for feature in _named(explanations, name)
                if feature in effects
            ]  # fmt: skip
    correlations = [
        _correlation(classifier, attribute, feature, class_, read, own[class_], sure)
        for attribute in attributes
        for class_ in classes
        for feature in attribute.features
    ]
    return Audit(
        classifier=classifier.name,
        photos=len(read),
        classes=tuple(classifier.classes[c] for c in classes),
        explanations=made,
        candidates=tuple(sorted(candidates, key=lambda f: (-f.confidence, -f.effect.mean))),
        correlations=tuple(sorted(correlations, key=lambda c: (-c.confidence, -c.effect))),
        failed=failed,
        seconds=time.process_time() - began,
        against=against and against.name,
    )


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


def _pairs(classes: Sequence[int], own, sure_nk) -> dict[int, int]:
    """Class -> the other one whose photos have the highest mean confidence in it."""
    if len(classes) < 2:
        return {}
    taken = {c: sure_nk[own[c]].mean(dim=0) for c in classes}
    return {
        c: max((s for s in classes if s != c), key=lambda s, c=c: float(taken[s][c]))
        for c in classes
    }


def _plan(own, pairs: Mapping[int, int], read, sure_nk, attribute: Attribute) -> list:
    """(class, photo): the photos of each class, and those of the class that is taken for it.

    Questions about one photo lie together, so that it is inverted once.
    """
    starts = {c: _starts(ns, read, sure_nk, attribute) for c, ns in own.items()}
    asked = [(c, n) for c, ns in starts.items() for n in ns]
    asked += [(c, n) for c, s in pairs.items() for n in starts[s][:PAIRED]]
    return [(c, read[n]) for c, n in sorted(asked, key=lambda one: (one[1], one[0]))]


def _named(explanations: Sequence[Explanation], class_: str) -> list[str]:
    """The features that most explanations of the class's own photos name, or most others."""
    groups = [[x.names for x in explanations if (x.class_ == class_) == own]
              for own in (True, False)]  # fmt: skip
    counts = [(f, count, len(g)) for g in groups for f, count in Counter(g).items()]
    return list(dict.fromkeys(f for f, count, n in counts if f and 2 * count > n))


def _starts(own: Sequence[int], read, sure_nk, attribute: Attribute) -> list[int]:
    """The photos of a class that the classifier is least sure of, of different features first."""
    least = sorted(own, key=lambda n: float(sure_nk[n, read[n].class_]))
    first: dict[str, int] = {}
    for n in least:
        first.setdefault(read[n].features[attribute.name], n)
    different = list(first.values())
    return [*different, *(n for n in least if n not in different)][:STARTS]


def _explain(engine, classifier, attribute, starts, surest, seed, tools, on_progress):
    """class -> its explanations; photo -> why it has none.

    surest: photos that set the scale of each class's log-odds.
    """
    items = [
        replace(
            photo.item, image=photo.image, mask=photo.mask, crop=False, prompt=photo.prompt,
            source=str(photo.class_), source_word=photo.word, caption=None,
            background=photo.features[attribute.name],
        )
        for _, photo in starts
    ]  # fmt: skip
    task = NeuronCounterfactuals(
        engine=engine, photos=items, classifier=classifier.at_classes(),
        neuron=[class_ for class_, _ in starts], direction="max", backgrounds=attribute.reader,
        dataset=surest,
        settings=explanation_settings(engine, attribute), seed=seed, tools=tools,
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


def _effects_by_masks(classifier, attribute, group, read, class_):
    """None where fewer than two photos have masks."""
    masked = [photo for photo in group if photo.mask is not None]
    if len(masked) < 2:
        return None
    swap = masked_swap(attribute, read)
    return measure_effects(classifier, attribute, _spread(masked, SWAPPED), class_, swap)


def _measured(engine, classifier, attribute, group, read, seed, tools):
    """What measures effects on a classifier's confidence in a class, on the same swaps for all.

    By masks where two photos of the class have them, else by generated pictures.
    """
    if sum(photo.mask is not None for photo in group) > 1:
        return lambda judge, class_: _effects_by_masks(judge, attribute, group, read, class_)
    few = _spread(group, GENERATED)
    swap = generated_swap(engine, classifier, attribute, few, seed, tools)
    return lambda judge, class_: measure_effects(
        judge, attribute, few, class_, swap, generated=True
    )


def _spread(photos: Sequence[AuditPhoto], most: int) -> list[AuditPhoto]:
    """At most so many, spread evenly over all."""
    step = max(1, len(photos) / most)
    return [photos[int(n * step)] for n in range(min(most, len(photos)))]


def _correlation(classifier, attribute, feature, class_, read, own, sure_nk) -> Correlation:
    groups: tuple[list[float], list[float]] = ([], [])
    for n in own:
        has = read[n].features[attribute.name] == feature
        groups[0 if has else 1].append(float(sure_nk[n, class_]))
    return correlation(classifier.classes[class_], attribute.name, feature, *groups)


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
