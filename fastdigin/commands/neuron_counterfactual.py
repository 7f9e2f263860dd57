"""fastdigin neuron-counterfactual."""

from __future__ import annotations

from argparse import Namespace

from fastdigin.commands.classifier_options import load_classifier
from fastdigin.commands.parts import run_parts
from fastdigin.commands.photo_options import load_photo_tools, with_captions
from fastdigin.commands.task_options import (
    chosen_engine,
    described_inputs,
    with_layer,
    with_options,
)
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.tasks import neuron_counterfactual as ncf
from fastdigin.tasks.inputs import collect, read_images
from fastdigin.tasks.part import Part


def run(options: Namespace) -> int:
    """Counterfactuals of one neuron on the user's images."""
    inputs = with_captions(options, described_inputs(options))
    engine = chosen_engine(options)
    classifier = with_layer(load_classifier(options.classifier, options), options.layer)
    neuron = classifier.check_neuron(options.neuron)
    embedded_model = options.model == EMBEDDED
    backgrounds = Classifier.load("embedded:background") if embedded_model else None
    photos = collect(["embedded:photos"]) if embedded_model else []
    dataset = read_images(photos, engine.model.image_size)
    settings = with_options(ncf.default_settings(engine.model), options)
    tools = load_photo_tools(options, engine.model)
    ids = ncf.job_ids(inputs, [neuron] * len(inputs), [options.direction] * len(inputs))
    part = Part(
        ncf.TASK,
        ncf.run_settings(
            engine.model, settings, classifier, backgrounds, options.seed, dataset, tools
        ),
        ids,
        lambda skip, tick: ncf.neuron_counterfactuals(
            engine, inputs, classifier, neuron, options.direction, dataset=dataset,
            backgrounds=backgrounds, settings=settings, seed=options.seed, tools=tools, skip=skip,
            on_progress=tick,
        ),
        dict(zip(ids, inputs, strict=True)),
    )  # fmt: skip
    return run_parts([part], options.out, as_json=options.json, shard=options.shard)
