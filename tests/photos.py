"""Photo-like 8-bit images for comparing transforms."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastdigin.models.classifier import Classifier
from fastdigin.models.classifiers.outputs import in_channels


def photo(height: int, width: int, seed: int = 0, span: tuple[float, float] = (0, 1)) -> Image:
    """Noise at three scales, within ``span`` of white."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for side, share in ((5, 0.6), (23, 0.3), (101, 0.1)):
        noise = torch.rand(1, 3, side, side, generator=generator)
        image += share * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    low, high = image.min(), image.max()
    image = span[0] + (span[1] - span[0]) * (image - low) / (high - low)
    return Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())


def as_tensor(image: Image.Image) -> Tensor:
    """(1,3,H,W) in [0,1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


@torch.no_grad()
def check_transform(classifier: Classifier, model: nn.Module, transform, shape) -> None:
    """Logits are those of the library's own transform, and of 8-bit files but for rounding.

    Pillow rounds files to 8 bits after each axis; how far that moves logits is the network's
    affair, so there the pixels are compared.
    """
    image = as_tensor(photo(*shape, span=(0.3, 0.7)))  # bicubic filters overshoot nowhere
    expected = model(transform(image[0])[None])
    assert (classifier.logits(image) - expected).abs().max() < 1e-3
    assert expected.std() > 0.01
    image = photo(*shape)
    mean, std = classifier._mean_c11.float(), classifier._std_c11.float()
    pixels = transform(image)[None] * std + mean
    prepared = in_channels(classifier.prepare(as_tensor(image)), classifier.channels)
    assert (prepared - pixels).abs().max() <= 1.6 / 255
