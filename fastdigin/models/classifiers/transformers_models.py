"""hf:ID, any image classifier of transformers, with the preprocessing of its image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, numbered, square
from fastdigin.models.filters import INTERPOLATIONS
from fastdigin.models.missing import LOAD_ERRORS, first_sentence, missing_weights
from fastdigin.models.preprocessing import Resizing


def load_transformers(source: str) -> LoadedNetwork:
    """A model for image classification and its image processor, from a hub id or a folder.

    Weights are read from safetensors where they exist, and otherwise as nothing but tensors.
    Raises UserError where they cannot be had, and for an image processor that does something else
    than resize, crop the centre, and normalise.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    spec = f"hf:{source}"
    try:
        processor = AutoImageProcessor.from_pretrained(source)
        network = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32)
    except LOAD_ERRORS as error:
        if _is_folder(source):
            raise UserError(
                f"classifier {spec!r} could not be loaded ({first_sentence(error)}): the folder "
                "must hold config.json, preprocessor_config.json and model.safetensors of an image "
                "classifier."
            ) from error
        what = f"config.json, preprocessor_config.json and model.safetensors of {source}"
        raise missing_weights(spec, what, f"hf download {source}", error) from error
    size, resizing = _resizing(processor, spec)
    normalises = processor.do_normalize
    loaded = LoadedNetwork(
        network=network,
        size=size,
        mean=tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
        classes=_classes(network.config),
        resizing=resizing,
    )
    _check_processor(processor, loaded, spec)
    return loaded


def _is_folder(source: str) -> bool:
    return Path(source).exists() or source.startswith((".", "/", "~")) or source.count("/") > 1


def _resizing(processor: Any, spec: str) -> tuple[int, Resizing]:
    """Size and Resizing that an image processor's settings stand for."""
    edges = {k: v for k, v in dict(processor.size).items() if v is not None}
    interpolation = Image.Resampling(int(processor.resample)).name.lower()
    if interpolation not in INTERPOLATIONS:
        raise _not_understood(processor, spec)
    if set(edges) == {"height", "width"}:
        edge, fit = square(edges["height"], edges["width"], spec), "squash"
    elif set(edges) == {"shortest_edge"}:
        edge, fit = edges["shortest_edge"], "shortest"
    else:
        raise _not_understood(processor, spec)
    size, crop_pct = edge, getattr(processor, "crop_pct", None)
    if processor.do_center_crop:
        size = square(processor.crop_size["height"], processor.crop_size["width"], spec)
    elif crop_pct and fit == "shortest":  # ConvNeXt's: a crop below 384 pixels, none from there on
        edge, fit = (int(size / crop_pct), "shortest") if size < 384 else (size, "squash")
    return size, Resizing(fit, edge, interpolation)


def _check_processor(processor: Any, loaded: LoadedNetwork, spec: str) -> None:
    """Compares with the processor itself on one image, since every kind has its own habits."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(330, 410), mode="bilinear")
    bytes_hw3 = (smooth[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    expected = processor(images=Image.fromarray(bytes_hw3.numpy()), return_tensors="pt")
    image_b3hw = bytes_hw3.permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (loaded.mean, loaded.std))
    ours = loaded.resizing(image_b3hw, loaded.size)
    theirs = expected["pixel_values"] * std + mean
    # Twice the rounding of Pillow to 8 bits, once per axis.
    if theirs.shape != ours.shape or (theirs - ours).abs().max() > 2.5 / 255:
        raise _not_understood(processor, spec)


def _not_understood(processor: Any, spec: str) -> UserError:
    return UserError(
        f"classifier {spec!r}: its {type(processor).__name__} prepares images in a way that is not "
        "understood here; only resizing, cropping the centre and normalising are. If timm or "
        "torchvision has the model, use timm:NAME or torchvision:NAME."
    )


def _classes(config: Any) -> tuple[str, ...]:
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    unnamed = [f"LABEL_{index}" for index in range(config.num_labels)]
    return numbered(config.num_labels) if names == unnamed else tuple(names)
