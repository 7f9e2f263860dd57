"""Pictures read back from the disk, and what the networks make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.tasks.inputs import ImageInput, read_image

_BATCH = 64


def read_picture(path: Path, size: int) -> Tensor:
    """(3, size, size) in [0, 1]."""
    return read_image(ImageInput(path.stem, path), size)


def read_grey(path: Path, size: int) -> Tensor:
    """A mask as (size, size) in [0, 1]; one that is black all over is a mask too."""
    return read_picture(path, size)[0]


@torch.no_grad()
def predictions(classifier: Classifier, images: Sequence[Tensor]) -> list[str]:
    """The class that the classifier sees in each image (3, H, W)."""
    indices: list[int] = []
    for start in range(0, len(images), _BATCH):
        batch = torch.stack(list(images[start : start + _BATCH])).to(classifier.device)
        indices += classifier.logits(batch).argmax(dim=1).tolist()
    return [classifier.classes[index] for index in indices]


@torch.no_grad()
def round_trip(model: LatentDiffusion, image_3hw: Tensor) -> Tensor:
    """What the autoencoder makes of an image, on the CPU."""
    return model.decode(model.encode_image(image_3hw)[None])[0].float().cpu()
