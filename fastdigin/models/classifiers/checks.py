"""Whether a classifier can be explained, found out before any work."""

from typing import Literal

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier

Differentiable = Literal["logits", "activations"]


def check_classifier(classifier: Classifier, differentiable: Differentiable | None = None) -> None:
    """Runs one image of noise through a classifier.

    Args:
        classifier: One without classes is asked for its activations only.
        differentiable: What has to have a gradient in the image; None if it is only asked.

    Raises:
        UserError: The network does not give one logit per class, gives probabilities instead of
            logits, or no gradient reaches the image.
    """
    size = classifier.size
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    image = noise.to(classifier.device).requires_grad_(differentiable is not None)
    with torch.set_grad_enabled(differentiable is not None):
        if classifier.classes:
            found = classifier.logits(image, prepared=True)
            _check_logits(classifier, found.detach())
        if differentiable == "activations":
            found = classifier.activations(image, prepared=True)
        reached = differentiable is None or _has_gradient(found, image)
    if not reached:
        raise UserError(
            f"no gradient of the {differentiable} of {classifier.name} reaches the image, so "
            "nothing can be optimised: its forward must not run under torch.no_grad() or "
            "inference_mode(), detach, round, or go through numpy."
        )


def _check_logits(classifier: Classifier, logits: Tensor) -> None:
    sums_to_1 = bool((logits >= 0).all()) and abs(float(logits.sum()) - 1) < 1e-4
    if classifier.activation == "softmax" and sums_to_1:
        raise UserError(
            f"{classifier.name} returns probabilities, which add up to 1: give its network without "
            "the softmax at its end."
        )


def _has_gradient(found: Tensor, image: Tensor) -> bool:
    if not found.requires_grad:
        return False
    # Weighted at random, because a sum over all may not depend on the image.
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    (gradient,) = torch.autograd.grad((weights * found).sum(), image, allow_unused=True)
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
