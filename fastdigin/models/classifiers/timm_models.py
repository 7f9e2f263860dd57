"""timm:NAME, with the preprocessing of its own evaluation transform."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, numbered, square
from fastdigin.models.missing import (
    LOAD_ERRORS,
    first_sentence,
    missing_weights,
    offline,
    require,
    unknown,
)
from fastdigin.models.preprocessing import Resizing


def load_timm(name: str) -> LoadedNetwork:
    """A pretrained model of timm by its name, ``local-dir:FOLDER`` or ``hf-hub:ID``.

    timm takes safetensors where they exist and unpickles nothing but tensors otherwise.
    Raises UserError for an unknown name and where the weights cannot be had.
    """
    timm = _timm(name)
    _refuse_download(timm, name)
    try:
        network = timm.create_model(name, pretrained=True)
    except LOAD_ERRORS as error:
        raise _cannot_load(timm, name, error) from error
    return _described(timm, name, network)


def build_timm(name: str, num_classes: int | None = None) -> LoadedNetwork:
    """The architecture called ``name`` without its weights."""
    timm = _timm(name)
    options = {} if num_classes is None else {"num_classes": num_classes}
    return _described(timm, name, timm.create_model(name, pretrained=False, **options))


def _timm(name: str) -> Any:
    timm = require("timm", "timm", f"timm:{name}")
    if ":" in name or timm.is_model(name):
        # A tag is looked up when the weights are: timm.is_model sees the architecture alone.
        tagged = name.partition(".")[2]
        known = timm.list_pretrained() if tagged and ":" not in name else [name]
        if name in known:
            return timm
        raise unknown(f"timm:{name}", "timm", name, known, "timm.list_pretrained()")
    raise unknown(f"timm:{name}", "timm", name, timm.list_models(), "timm.list_models()")


def _described(timm: Any, name: str, network: nn.Module) -> LoadedNetwork:
    """With the settings that timm's create_transform takes for evaluation."""
    data = timm.data.resolve_model_data_config(network)
    size = square(*data["input_size"][-2:], f"timm:{name}")
    fits = {"center": "shortest", "squash": "squash", "border": "longest"}
    resizing = Resizing(
        fit=fits[data["crop_mode"] or "center"],
        edge=math.floor(size / (data["crop_pct"] or timm.data.constants.DEFAULT_CROP_PCT)),
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bilinear",
        fill=tuple(round(255 * value) / 255 for value in data["mean"]),
    )
    head = network.pretrained_cfg.get("classifier")
    return LoadedNetwork(
        network=network,
        size=size,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        classes=_classes(timm, network),
        resizing=resizing,
        # A distilled transformer has two heads; the first reads the class token.
        head=head if isinstance(head, str) or not head else head[0],
    )


def _classes(timm: Any, network: nn.Module) -> tuple[str, ...]:
    """The names that came with the weights, else ImageNet's by their number, else the indices."""
    cfg = network.pretrained_cfg
    names, descriptions = cfg.get("label_names"), cfg.get("label_descriptions")
    if names:
        return tuple(str((descriptions or {}).get(name, name)) for name in names)
    subset = timm.data.infer_imagenet_subset(network)
    if subset:
        return tuple(timm.data.ImageNetInfo(subset).label_descriptions())
    return numbered(network.num_classes)


def _refuse_download(timm: Any, name: str) -> None:
    """A few old weights come from plain addresses, which HF_HUB_OFFLINE does not hold back."""
    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    if not offline() or cfg is None or cfg.hf_hub_id or not cfg.url:
        return
    if not timm.models._hub.check_cached_file(cfg.url):
        raise _cannot_load(timm, name, None)


def _cannot_load(timm: Any, name: str, error: Exception | None) -> UserError:
    spec = f"timm:{name}"
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        return UserError(
            f"classifier {spec!r} could not be loaded ({first_sentence(error)}): give a folder "
            "with config.json and model.safetensors, as timm.models.save_for_hf writes it."
        )
    if kind in ("hf-hub", "hf_hub"):
        repository = place
    else:
        cfg = timm.get_pretrained_cfg(name)
        if not cfg or not (cfg.hf_hub_id or cfg.url):
            return UserError(
                f"classifier {spec!r} has no pretrained weights: choose one of "
                "timm.list_pretrained(), or give your own as file:PATH@" + spec + "."
            )
        if not cfg.hf_hub_id:
            file = Path(timm.models._hub.get_cache_dir()) / Path(cfg.url).name
            return missing_weights(spec, f"'{file}'", f"curl -L -o {file} {cfg.url}", error)
        repository = cfg.hf_hub_id
    return missing_weights(
        spec, f"model.safetensors of {repository}", f"hf download {repository}", error
    )
