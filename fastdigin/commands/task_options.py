"""What the options of the task commands mean: engine, inputs, settings."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import diffusers
import transformers

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.tasks.inputs import ImageInput, collect
from fastdigin.tasks.regularisers import Regulariser


def load_engine(
    model: str,
    memory: str = "auto",
    slots: int | None = None,
    attention: str = "auto",
    compile: str = "auto",
) -> Engine:
    """An engine around what ``LatentDiffusion.load`` finds under that name."""
    diffusers.utils.logging.disable_progress_bar()  # of loading: it takes a second
    transformers.utils.logging.disable_progress_bar()
    loaded = LatentDiffusion.load(model, attention=attention)
    return Engine(loaded, memory=memory, slots=slots, compile=compile)


def chosen_engine(options: Namespace) -> Engine:
    return load_engine(
        options.model, options.memory, options.slots, options.attention, options.compile
    )


def described_inputs(options: Namespace, **also: str | None) -> list[ImageInput]:
    """The inputs of the command line, with whatever its options say of all of them."""
    described = {"source": options.source, "prompt": options.prompt, **also}
    given = {key: value for key, value in described.items() if value is not None}
    if options.crop:
        given["crop"] = True
    if options.prompt is not None:
        given["background"] = None  # the table's may not occur in the new prompt
    return [replace(item, **given) for item in collect(options.images, options.limit)]


def with_options(settings: Any, options: Namespace) -> Any:
    names = ("steps", "iterations", "guidance_scale", "learning_rate")
    given = {name: v for name in names if (v := getattr(options, name)) is not None}
    settings = replace(settings, optimisation=replace(settings.optimisation, **given))
    if getattr(options, "inversion", None):
        settings = replace(settings, inversion_method=options.inversion)
    if getattr(options, "regulariser", None):
        regularisers = tuple(Regulariser.parse(text) for text in options.regulariser)
        settings = replace(settings, regularisers=regularisers)
    return settings


def with_layer(classifier: Classifier, layer: str | None) -> Classifier:
    return classifier if layer is None else classifier.at_layer(layer)
