"""Jobs of all four tasks on a tiny model, for whoever wants a mixed queue."""

import torch
from tiny import build_classifier, uniform

import fastdigin as fd

OPTIMISATION, CUTOUTS = fd.Settings(steps=3, iterations=1), fd.Cutouts(count=2)


def four_tasks(engine, optimisation=OPTIMISATION, build=build_classifier):
    """Two jobs of each, run; those of photos inject attention and blend, one by a mask of its own.

    Counterfactuals are inverted directly, neuron counterfactuals by null-text optimisation.
    Of the two classifiers the second looks at another size. build: makes one of a seed and a name.
    """
    classifier, other = build(), build(seed=1, name="other")
    other.size = 10
    size = engine.model.image_size
    shape, mask = (3, size, size), torch.zeros(size, size)
    mask[size // 4 : 3 * size // 4, 3 * size // 16 : 11 * size // 16] = 1
    photos = [
        fd.ImageInput("one", uniform(*shape, seed=1), "a photo of a sneaker", "sneaker", "boot"),
        fd.ImageInput("two", uniform(*shape, seed=2), "a blue bag", "bag", "sneaker", mask),
    ]
    yield from fd.counterfactuals(
        engine, photos, classifier,
        settings=fd.CounterfactualSettings(
            optimisation, null_text_steps=1, injection_fractions=(0.5,), blending_fractions=(0.3,),
            cutouts=CUTOUTS,
        ),
    )  # fmt: skip
    yield from fd.disagreements(
        engine, classifier, other, ["boot", "bag"],
        settings=fd.DisagreementSettings(optimisation, cutouts=CUTOUTS),
    )  # fmt: skip
    yield from fd.visualise_neurons(
        engine, classifier, [1, 4], ["red boot", "bag"], [uniform(*shape)],
        settings=fd.NeuronSettings(optimisation, samples_per_word=1, cutouts=CUTOUTS),
    )  # fmt: skip
    yield from fd.neuron_counterfactuals(
        engine, photos, classifier, [2, 5], ["max", "min"],
        settings=fd.NeuronCounterfactualSettings(optimisation, "null-text", null_text_steps=1),
    )  # fmt: skip
