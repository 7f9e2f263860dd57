"""Jobs of all four tasks on a tiny model, for whoever wants a mixed queue."""

from __future__ import annotations

from tiny import IMAGE_SHAPE, build_classifier, uniform

from fastdigin.engine.job import Settings
from fastdigin.objectives import Cutouts
from fastdigin.photos import ImageInput
from fastdigin.tasks.counterfactual import CounterfactualSettings, counterfactuals
from fastdigin.tasks.disagreement import DisagreementSettings, disagreements
from fastdigin.tasks.neuron_counterfactual import (
    NeuronCounterfactualSettings,
    neuron_counterfactuals,
)
from fastdigin.tasks.neurons import NeuronSettings, visualise_neurons

OPTIMISATION, CUTOUTS = Settings(steps=3, iterations=1), Cutouts(count=2)


def four_tasks(engine):
    """Two jobs of each, run; those of photos inject attention and blend."""
    classifier, other = build_classifier(), build_classifier(seed=1, name="other")
    photos = [
        ImageInput("one", uniform(*IMAGE_SHAPE, seed=1), "a photo of a sneaker", "sneaker", "boot"),
        ImageInput("two", uniform(*IMAGE_SHAPE, seed=2), "a blue bag", "bag", "sneaker"),
    ]
    yield from counterfactuals(
        engine, photos, classifier,
        settings=CounterfactualSettings(
            OPTIMISATION, null_text_steps=1, injection_fractions=(0.5,), blending_fractions=(0.3,),
            cutouts=CUTOUTS,
        ),
    )  # fmt: skip
    yield from disagreements(
        engine, classifier, other, ["boot", "bag"],
        settings=DisagreementSettings(OPTIMISATION, cutouts=CUTOUTS),
    )  # fmt: skip
    yield from visualise_neurons(
        engine, classifier, [1, 4], ["red boot", "bag"], [uniform(*IMAGE_SHAPE)],
        settings=NeuronSettings(OPTIMISATION, samples_per_word=1, cutouts=CUTOUTS),
    )  # fmt: skip
    yield from neuron_counterfactuals(
        engine, photos, classifier, [2, 5], ["max", "min"],
        settings=NeuronCounterfactualSettings(OPTIMISATION, null_text_steps=1),
    )  # fmt: skip
