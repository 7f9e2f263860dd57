"""torchvision:NAME[.WEIGHTS], with the preprocessing that comes with the weights."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, numbered, square
from fastdigin.models.layers import find_head
from fastdigin.models.missing import cannot_load, loading, offline, require, unknown
from fastdigin.models.preprocessing import Resizing

models = require("torchvision.models", "torchvision", "a classifier of torchvision")

# What their builders set where they load weights themselves.
_WITH_WEIGHTS = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}


def load(name: str) -> LoadedNetwork:
    """A pretrained model of torchvision by its name; without WEIGHTS its newest ones.

    Raises UserError for an unknown name or weights and where they cannot be had.
    """
    architecture, weights = _find(name)
    network = _build(architecture, weights)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    where = f"classifier 'torchvision:{name}'", f"'{file}'", f"curl -L -o {file} {weights.url}"
    if offline() and not file.is_file():
        raise cannot_load(*where)
    with loading(*where):
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        network.load_state_dict(state)
    return describe(network, weights, where[0])


def build(name: str, **options: Any) -> LoadedNetwork:
    """The architecture called ``name`` without its weights, prepared as for its weights.

    options: of its builder, like num_classes and image_size.
    """
    architecture, weights = _find(name)
    network = _build(architecture, weights, **options)
    return describe(network, weights, f"classifier 'torchvision:{name}'")


def describe(network: nn.Module, weights: Any, owner: str) -> LoadedNetwork:
    """A model with the preprocessing and the names of weights of its architecture."""
    transform, names = weights.transforms(), tuple(weights.meta["categories"])
    head = network.get_submodule(find_head(network))
    count = getattr(head, "out_features", None) or head.out_channels
    crop, edge = transform.crop_size[0], transform.resize_size[0]
    size = getattr(network, "image_size", crop)  # of a vision transformer
    return LoadedNetwork(
        network=network,
        size=square(crop, transform.crop_size[-1], owner) if size == crop else size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        classes=names if count == len(names) else numbered(count),
        named="own" if count == len(names) else "numbers",
        resizing=Resizing("shortest", edge * size // crop, transform.interpolation.value),
    )


def weights_of(network: nn.Module, owner: str) -> Any:
    """The newest weights of the architecture that a module is, found by its class and shapes.

    Raises UserError where torchvision has none.
    """
    shapes = _shapes(network)
    for name in models.list_models(module=models):
        builder = models.get_model_builder(name)
        made = inspect.signature(builder).return_annotation
        if getattr(made, "__name__", made) != type(network).__name__:
            continue
        weights = models.get_model_weights(name).DEFAULT
        with torch.device("meta"):
            if _shapes(_build(name, weights)) == shapes:
                return weights
    raise UserError(
        f"{owner}: torchvision has no {type(network).__name__} of this shape, so nothing tells how "
        "its images are prepared: give size, mean, std and classes."
    )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Of all tensors but those of the head, whose classes may be other ones."""
    head = find_head(network)
    state = network.state_dict().items()
    return {name: value.shape for name, value in state if not name.startswith(f"{head}.")}


def _find(name: str) -> tuple[str, Any]:
    """The architecture and the weights that ``name`` means."""
    owner = f"classifier 'torchvision:{name}'"
    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown(owner, "torchvision", architecture, known, "torchvision.models.list_models()")
    choices = models.get_model_weights(architecture)
    if not tag:
        return architecture, choices.DEFAULT
    if tag not in choices.__members__:
        raise UserError(
            f"{owner}: {architecture} has no weights {tag!r}; its weights are "
            f"{', '.join(choices.__members__)}."
        )
    return architecture, choices[tag]


def _build(architecture: str, weights: Any, **options: Any) -> nn.Module:
    options = {**_WITH_WEIGHTS.get(architecture, {}), **options}
    if architecture.startswith("vit_"):
        options.setdefault("image_size", weights.meta["min_size"][0])
    options.setdefault("num_classes", len(weights.meta["categories"]))
    return models.get_model(architecture, weights=None, **options)
