"""hf:ID, any image classifier of transformers, with the preprocessing of its image processor."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, numbered, square
from fastdigin.models.layers import find_head
from fastdigin.models.missing import is_folder, loading, without_bars
from fastdigin.models.preprocessing import Resizing
from fastdigin.models.resampling import INTERPOLATIONS, resample
from fastdigin.models.weights import check_weights


def load(source: str) -> LoadedNetwork:
    """A model for image classification and its image processor, from a hub id or a folder.

    Weights are read from safetensors where they exist, and otherwise as nothing but tensors.
    Raises UserError where they cannot be had, and for an image processor that does something else
    than resize, crop the centre, and normalise.
    """
    loaded, headless = _load(source)
    if headless:
        raise UserError(
            f"classifier 'hf:{source}' has no head, which transformers makes up at random "
            f"({', '.join(headless)} are missing): choose weights that were trained to classify."
        )
    return loaded


def load_features(source: str) -> LoadedNetwork:
    """The same for what goes into the head, which may be missing."""
    return _load(source)[0]


def _load(source: str) -> tuple[LoadedNetwork, list[str]]:
    """The network, and the tensors of its head that its file lacks."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    owner = f"classifier 'hf:{source}'"
    files = "config.json, preprocessor_config.json and model.safetensors of "
    where = (f"a folder with {files}an image classifier", None)
    if not is_folder(source):
        where = (files + source, f"hf download {source}")
    with loading(owner, *where), without_bars():
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        network, info = AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    head = find_head(network)
    headless = sorted(name for name in info["missing_keys"] if name.startswith(f"{head}."))
    missing = set(info["missing_keys"]).difference(headless)
    check_weights(owner, network, missing, info["unexpected_keys"])
    size, resizing = _resizing(processor, owner)
    normalises = processor.do_normalize
    loaded = LoadedNetwork(
        network=network,
        size=size,
        mean=tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
        classes=_classes(network.config),
        resizing=resizing,
    )
    _check_processor(processor, loaded, owner)
    return loaded, headless


def _resizing(processor: Any, owner: str) -> tuple[int, Resizing]:
    """Size and Resizing that an image processor's settings stand for."""
    edges = {k: v for k, v in dict(processor.size).items() if v is not None}
    interpolation = Image.Resampling(int(processor.resample)).name.lower()
    if interpolation not in INTERPOLATIONS:
        raise _not_understood(processor, owner)
    if set(edges) == {"height", "width"}:
        edge, fit = square(edges["height"], edges["width"], owner), "squash"
    elif set(edges) == {"shortest_edge"}:
        edge, fit = edges["shortest_edge"], "shortest"
    else:
        raise _not_understood(processor, owner)
    size, crop_pct = edge, getattr(processor, "crop_pct", None)
    if processor.do_center_crop:
        size = square(processor.crop_size["height"], processor.crop_size["width"], owner)
    elif crop_pct and fit == "shortest":  # ConvNeXt's: a crop below 384 pixels, none from there on
        edge, fit = (int(size / crop_pct), "shortest") if size < 384 else (size, "squash")
    return size, Resizing(fit, edge, interpolation)


def _check_processor(processor: Any, loaded: LoadedNetwork, owner: str) -> None:
    """Compares with the processor itself on one image, since every kind has its own habits."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    bytes_hw3 = (resample(coarse, (330, 410))[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    expected = processor(images=Image.fromarray(bytes_hw3.numpy()), return_tensors="pt")
    image_b3hw = bytes_hw3.permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (loaded.mean, loaded.std))
    ours = loaded.resizing(image_b3hw, loaded.size)
    theirs = expected["pixel_values"] * std + mean
    # Twice the rounding of Pillow to 8 bits, once per axis.
    if theirs.shape != ours.shape or (theirs - ours).abs().max() > 2.5 / 255:
        raise _not_understood(processor, owner)


def _not_understood(processor: Any, owner: str) -> UserError:
    return UserError(
        f"{owner}: its {type(processor).__name__} prepares images in a way that is not "
        "understood here; only resizing, cropping the centre and normalising are. If timm or "
        "torchvision has the model, use timm:NAME or torchvision:NAME."
    )


def _classes(config: Any) -> tuple[str, ...]:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    unnamed = [f"LABEL_{index}" for index in range(config.num_labels)]
    return numbered(config.num_labels) if names == unnamed else tuple(names)
