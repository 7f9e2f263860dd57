"""Swaps that the diffusion model makes, for photos whose objects no mask tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fastdigin import presets
from fastdigin.audit.attributes import Attribute
from fastdigin.audit.photos import AuditPhoto
from fastdigin.audit.swaps import Swap
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.sources import PhotoTools


def generated_swap(
    engine: Engine,
    classifier: Classifier,
    attribute: Attribute,
    photos: Sequence[AuditPhoto],
    seed: int,
    tools: PhotoTools,
) -> Swap:
    """Edits the feature's word in the prompts of photos; nothing is optimised.

    The classifier has no part in how these pictures are made. A picture counts only where the
    attribute's reader sees the feature in it.
    """
    base = presets.FAST.of(Counterfactuals.default_settings(engine.model))
    settings = replace(
        base,
        optimisation=replace(base.optimisation, iterations=0),
        injection_fractions=(0.3,),
        regularisers=(),
        stop_at=None,
    )
    asked, items = [], []
    for photo in photos:
        own = photo.features[attribute.name]
        # Which class is the target plays no part without iterations; it must differ.
        target = str((photo.class_ + 1) % len(classifier.classes))
        for feature in attribute.features:
            if feature != own:
                asked.append((photo, feature))
                items.append(
                    replace(
                        photo.item, image=photo.image, mask=None, crop=False, caption=None,
                        prompt=photo.prompt, source=str(photo.class_),
                        source_word=own, target=target, target_word=feature,
                    )
                )  # fmt: skip
    task = Counterfactuals(
        engine=engine, photos=items, classifier=classifier, settings=settings, seed=seed,
        tools=tools,
    )  # fmt: skip
    names = dict(zip((request.id for request in task.requests), asked, strict=True))
    made: dict[tuple[int, str], Tensor] = {}  # ids of files may be the same
    for record in task.run():
        photo, feature = names[record.id]
        if record.image is not None and attribute.read(record.image[None]) == [feature]:
            made[id(photo), feature] = record.image.cpu()
        if record.initial_image is not None:  # as the model sees the photo: like beside like
            own = photo.features[attribute.name]
            made[id(photo), own] = record.initial_image.cpu()
    return lambda photo, feature: made.get((id(photo), feature))
