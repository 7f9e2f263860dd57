"""torchvision:NAME[.WEIGHTS], with the preprocessing that comes with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, numbered, square
from fastdigin.models.missing import cannot_load, loading, offline, require, unknown
from fastdigin.models.preprocessing import Resizing

# What their builders set where they load weights themselves.
_WITH_WEIGHTS = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}


def load(name: str) -> LoadedNetwork:
    """A pretrained model of torchvision by its name; without WEIGHTS its newest ones.

    Raises UserError for an unknown name or weights and where they cannot be had.
    """
    models, architecture, weights = _find(name)
    loaded = _build(models, architecture, weights, None)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    where = f"classifier 'torchvision:{name}'", f"'{file}'", f"curl -L -o {file} {weights.url}"
    if offline() and not file.is_file():
        raise cannot_load(*where)
    with loading(*where):
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        loaded.network.load_state_dict(state)
    return loaded


def build(name: str, num_classes: int | None = None) -> LoadedNetwork:
    """The architecture called ``name`` without its weights, prepared as for its weights."""
    return _build(*_find(name), num_classes)


def _find(name: str) -> tuple[Any, str, Any]:
    """torchvision.models, the architecture and the weights that ``name`` means."""
    owner = f"classifier 'torchvision:{name}'"
    models = require("torchvision.models", "torchvision", owner)
    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown(owner, "torchvision", architecture, known, "torchvision.models.list_models()")
    choices = models.get_model_weights(architecture)
    if not tag:
        return models, architecture, choices.DEFAULT
    if tag not in choices.__members__:
        raise UserError(
            f"{owner}: {architecture} has no weights {tag!r}; its weights are "
            f"{', '.join(choices.__members__)}."
        )
    return models, architecture, choices[tag]


def _build(models: Any, architecture: str, weights: Any, num_classes: int | None) -> LoadedNetwork:
    options = dict(_WITH_WEIGHTS.get(architecture, {}))
    if architecture.startswith("vit_"):
        options["image_size"] = weights.meta["min_size"][0]
    names = tuple(weights.meta["categories"])
    network = models.get_model(
        architecture, weights=None, num_classes=num_classes or len(names), **options
    )
    transform = weights.transforms()
    return LoadedNetwork(
        network=network,
        size=square(transform.crop_size[0], transform.crop_size[-1], architecture),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        classes=names if num_classes in (None, len(names)) else numbered(num_classes),
        resizing=Resizing("shortest", transform.resize_size[0], transform.interpolation.value),
    )
