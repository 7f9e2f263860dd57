"""Networks of many libraries by one string, one module per library."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, names_warning
from fastdigin.models.weights import check_weights

__all__ = ["KINDS", "LoadedNetwork", "is_zero_shot", "load_features", "load_network"]

log = logging.getLogger(__name__)

KINDS = {
    "embedded": ("embedded:NAME_OR_FOLDER", "loaded"),
    "timm": ("timm:NAME", "timm_models"),
    "torchvision": ("torchvision:NAME[.WEIGHTS]", "torchvision_models"),
    "hf": ("hf:ID_OR_FOLDER", "transformers_models"),
    "open_clip": ("open_clip:MODEL/PRETRAINED", "open_clip_models"),
    "file": ("file:PATH@ARCHITECTURE", "weight_files"),
}
"""Kind -> how it is written, and the module that loads it."""

SIGMOID = "sigmoid:"
"""Before any of these: its classes are true or not each for itself."""


def load_network(
    spec: str, classes: Sequence[str] | None = None, templates: Sequence[str] | None = None
) -> LoadedNetwork:
    """What ``Classifier.load`` builds on; it says what the texts mean.

    classes are for zero-shot classifiers only. Raises UserError if the spec is not understood, or
    the network cannot be had, or is not all of what its file holds.
    """
    if spec.startswith(SIGMOID):
        loaded = load_network(spec.removeprefix(SIGMOID), classes, templates)
        return replace(loaded, activation="sigmoid")
    kind, name = _parse(spec)
    if is_zero_shot(spec):
        loaded = library(kind).load(name, classes, templates)
    elif templates is not None:
        raise UserError(
            f"templates were given for classifier {spec!r}, which reads no text: leave them out, "
            f"or use a zero-shot classifier, {KINDS['open_clip'][0]}."
        )
    else:
        loaded = library(kind).load(name)
    if not loaded.classes:
        raise UserError(
            f"classifier {spec!r} has no head, so it tells no classes apart: choose weights that "
            "were trained to classify."
        )
    check_weights(f"classifier {spec!r}", loaded.network)
    if classes is None and loaded.named != "own":
        log.warning("%s", names_warning(spec, loaded))
    return loaded


def load_features(spec: str) -> LoadedNetwork:
    """A network for what goes into its head, which may be missing; without classes.

    Raises UserError as :func:`load_network`.
    """
    kind, name = _parse(spec.removeprefix(SIGMOID))
    module = library(kind)
    loaded = getattr(module, "load_features", module.load)(name)
    check_weights(f"classifier {spec!r}", loaded.network)
    return loaded


def is_zero_shot(spec: str) -> bool:
    """Whether the classifier of this text tells any named classes apart."""
    return spec.removeprefix(SIGMOID).startswith("open_clip:")


def library(kind: str) -> ModuleType:
    """The module that loads this kind; imported on use, because that takes a second or more."""
    return import_module(f"fastdigin.models.classifiers.{KINDS[kind][1]}")


def _parse(spec: str) -> tuple[str, str]:
    kind, _, name = spec.partition(":")
    if kind not in KINDS or not name:
        known = ", ".join(form for form, _ in KINDS.values())
        raise UserError(f"classifier {spec!r} is not understood: write one of {known}.")
    return kind, name
