"""timm:NAME, with the preprocessing of its own evaluation transform."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, first_convolution, numbered, square
from fastdigin.models.missing import (
    cannot_load,
    fetching,
    loading,
    offline,
    require,
    unknown,
)
from fastdigin.models.preprocessing import Resizing


def load(name: str) -> LoadedNetwork:
    """A pretrained model of timm by its name, ``local-dir:FOLDER`` or ``hf-hub:ID``.

    timm takes safetensors where they exist and unpickles nothing but tensors otherwise.
    Raises UserError for an unknown name and where the weights cannot be had.
    """
    timm = _timm(name)
    where = f"classifier 'timm:{name}'", *_files(timm, name)
    with loading(*where):
        network = timm.create_model(name, pretrained=True)
    loaded = describe(network, where[0])
    # Names that are guessed for an unknown model are known of timm's own weights.
    known = ":" not in name and loaded.named == "guessed"
    return replace(loaded, named="own") if known else loaded


def build(name: str, **options: Any) -> LoadedNetwork:
    """The architecture called ``name`` without its weights.

    options: of timm.create_model, like num_classes, img_size and in_chans.
    """
    network = _timm(name).create_model(name, pretrained=False, **options)
    return describe(network, f"classifier 'timm:{name}'")


def _timm(name: str) -> Any:
    owner = f"classifier 'timm:{name}'"
    timm = require("timm", "timm", owner)
    if ":" in name:
        return timm
    if not timm.is_model(name):
        raise unknown(owner, "timm", name, timm.list_models(), "timm.list_models()")
    # A tag is looked up when the weights are: timm.is_model sees the architecture alone.
    known = timm.list_pretrained() if "." in name else [name]
    if name not in known:
        raise unknown(owner, "timm", name, known, "timm.list_pretrained()")
    return timm


def _files(timm: Any, name: str) -> tuple[str, str | None]:
    """The files of a model, and the command that fetches them."""
    kind, _, source = name.partition(":")
    if kind == "local-dir":
        wanted = "a folder with config.json and model.safetensors, as timm.models.save_for_hf"
        return f"{wanted} writes it", None
    cfg = None if source else timm.get_pretrained_cfg(name)
    if source or (cfg and cfg.hf_hub_id):
        repository = source or cfg.hf_hub_id
        return f"model.safetensors of {repository}", fetching(repository)
    owner = f"classifier 'timm:{name}'"
    if not cfg or not cfg.url:
        raise UserError(
            f"{owner} has no pretrained weights: choose one of timm.list_pretrained(), or give "
            f"your own as file:PATH@timm:{name}."
        )
    file = Path(timm.models._hub.get_cache_dir()) / Path(cfg.url).name
    where = f"'{file}'", f"curl -L -o {file} {cfg.url}"
    # A few old weights come from plain addresses, which HF_HUB_OFFLINE does not hold back.
    if offline() and not file.is_file():
        raise cannot_load(owner, *where)
    return where


def describe(network: Any, owner: str) -> LoadedNetwork:
    """A model of timm with the settings that timm's create_transform takes for evaluation."""
    import timm

    data = timm.data.resolve_model_data_config(network)
    edges = data["input_size"][-2:]
    embedding = getattr(network, "patch_embed", None)
    if getattr(embedding, "strict_img_size", False):  # the pretrained size may be another
        edges = embedding.img_size
    size = square(*edges, owner)
    gray = first_convolution(network) == 1
    mean, std = ((sum(x) / len(x),) if gray else tuple(x) for x in (data["mean"], data["std"]))
    fits = {"center": "shortest", "squash": "squash", "border": "longest"}
    resizing = Resizing(
        fit=fits[data["crop_mode"] or "center"],
        edge=math.floor(size / (data["crop_pct"] or timm.data.constants.DEFAULT_CROP_PCT)),
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bilinear",
        fill=tuple(round(255 * value) / 255 for value in (mean * 3)[:3]),
    )
    classes, named = _classes(timm, network)
    head = network.pretrained_cfg.get("classifier")
    return LoadedNetwork(
        network=network,
        size=size,
        mean=mean,
        std=std,
        classes=classes,
        named=named,
        resizing=resizing,
        channels="gray" if gray else "rgb",
        # A distilled transformer has two heads; the first reads the class token.
        head=head if isinstance(head, str) or not head else head[0],
    )


def _classes(timm: Any, network: nn.Module) -> tuple[tuple[str, ...], str]:
    """The names that came with the weights, else ImageNet's by their number, else the indices."""
    cfg = network.pretrained_cfg
    names, descriptions = cfg.get("label_names"), cfg.get("label_descriptions")
    if names:
        return tuple(str((descriptions or {}).get(name, name)) for name in names), "own"
    subset = timm.data.infer_imagenet_subset(network)
    if subset:
        return tuple(timm.data.ImageNetInfo(subset).label_descriptions()), "guessed"
    return numbered(network.num_classes), "numbers"
