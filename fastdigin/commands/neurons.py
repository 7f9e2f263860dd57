"""fastdigin neurons."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from fastdigin.commands.activating import TOP_IMAGES, find_activating
from fastdigin.commands.classifier_options import load_classifier, read_lines
from fastdigin.commands.naming_options import load_naming
from fastdigin.commands.parts import run_parts
from fastdigin.commands.task_options import (
    chosen_engine,
    with_layer,
    with_options,
)
from fastdigin.errors import UserError
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.tasks import neurons as neu
from fastdigin.tasks.part import Part


def run(options: Namespace) -> int:
    """Visualisations of single neurons."""
    words = None if options.words_from else listed_words(options)
    engine = chosen_engine(options)
    classifier = with_layer(load_classifier(options.classifier, options), options.layer)
    wanted = list(dict.fromkeys(classifier.check_neuron(n) for n in options.neurons))
    wanted = wanted[: options.limit]
    classifier.to(engine.model.device)
    dataset = find_activating(classifier, wanted, options.images, TOP_IMAGES, options)
    settings = with_options(neu.default_settings(engine.model), options)
    settings = replace(settings, direction=options.direction)
    if words is None:
        words = load_naming(options, engine.model.device)
    part = Part(
        neu.TASK,
        neu.run_settings(engine.model, settings, classifier, words, dataset, options.seed),
        [
            neu.job_id(neuron, settings.direction, rank)
            for neuron in wanted
            for rank in range(options.per_neuron)
        ],
        lambda skip, tick: neu.visualise_neurons(
            engine, classifier, wanted, words, dataset, images_per_neuron=options.per_neuron,
            settings=settings, seed=options.seed, skip=skip, on_progress=tick,
        ),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json, shard=options.shard)


def listed_words(options: Namespace) -> list[str]:
    """Those of --words, or what the embedded model can draw; other models need the user's."""
    if options.words:
        return read_lines(options.words, "--words")
    if options.model != EMBEDDED:
        raise UserError(
            "--words is needed with a model other than embedded, one word a line; or --words-from, "
            "which names what the neuron's most activating images show"
        )
    from fastdigin.embedded import words

    return words()
