"""The audit: photos are read, what they show explained, and what explanations name confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fastdigin.audit.attributes import Attribute, embedded_attributes
from fastdigin.audit.disagreements import Contrasted, shared_classes
from fastdigin.audit.effects import Swaps
from fastdigin.audit.explanations import Raised
from fastdigin.audit.findings import Audit, Explanation, Finding, named_features
from fastdigin.audit.photos import Material, read_photos
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.tasks.disagreement import same_network
from fastdigin.tasks.sources import NO_TOOLS, PhotoTools

PROMPT = "a photo of a {colour} {object} on {background}"
"""In the words of the embedded model, which heeds no background without a colour."""


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
    size = engine.model.image_size
    material = Material.of(classifier, read_photos(classifier, photos, attributes, prompt, size))
    if against is None:
        explainer = Raised(Swaps(engine, material, seed, tools))
    else:
        shared = shared_classes(classifier, against, list(material.own))
        material = material.only(shared)
        swaps = Swaps(engine, material, seed, tools)
        explainer = Contrasted(swaps, against, shared, attributes, prompt)
    if on_plan:
        on_plan(sum(explainer.count(attribute) for attribute in attributes))
    candidates: list[Finding] = []
    unmeasured: list[tuple[str, str, str]] = []
    made: dict[tuple[str, str], Sequence[Explanation]] = {}
    failed: dict[str, str] = {}
    for attribute in attributes:
        by_class, errors = explainer.explain(attribute, on_progress)
        failed |= errors
        for class_, explanations in by_class.items():
            name = classifier.classes[class_]
            made[name, attribute.name] = explanations
            measured = explainer.findings(attribute, class_, explanations)
            candidates += measured
            named = set(named_features(explanations, name)) - {f.feature for f in measured}
            unmeasured += [(name, attribute.name, feature) for feature in sorted(named)]
    correlations = [
        material.correlation(attribute, feature, class_)
        for attribute in attributes
        for class_ in material.own
        for feature in attribute.features
    ]
    return Audit(
        classifier=classifier.name,
        photos=len(material.photos),
        classes=tuple(classifier.classes[c] for c in material.own),
        explanations=made,
        candidates=tuple(sorted(candidates, key=lambda f: (-f.confidence, -f.effect.mean))),
        correlations=tuple(sorted(correlations, key=lambda c: (-c.confidence, -c.effect))),
        failed=failed,
        seconds=time.process_time() - began,
        against=against and against.name,
        unmeasured=tuple(unmeasured),
    )
