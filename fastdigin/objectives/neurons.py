"""Making one neuron of a classifier fire more, or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.objectives.augmentation import Cutouts, views


@dataclass(frozen=True, eq=False)
class NeuronActivation:
    """Raises (``maximise``) or lowers the activation of a neuron, as a mean over the crops.

    Minimised: -activation / scale, or activation / scale.

    Args:
        classifier: its ``layer`` holds the neurons; see ``Classifier.at_layer``.
        neuron: an index.
        maximise: whether the activation shall rise.
        scale: the neuron's largest activation over a data set, above 0, so that one weight suits
            all neurons.
        weight: of this loss in the total.
        cutouts: the crops; None looks at the plain image, as the paper does for neurons.
        through_relu: where every ReLU in front of the neuron is off for an image, so that no
            gradient would reach it, the gradient goes through (see :class:`ThroughRelu`).
        name: in the history.

    Raises:
        UserError: a neuron that the layer does not have, or a scale not above 0.

    Example:
        >>> loss = NeuronActivation(classifier, 565, scale=3.2)

    Source: DiG-IN, sections 4.3 and 4.4.
    """

    classifier: Classifier
    neuron: int
    maximise: bool = True
    scale: float = 1.0
    weight: float = 1.0
    cutouts: Cutouts | None = None
    through_relu: bool = False
    name: str = "activation"

    def __post_init__(self) -> None:
        object.__setattr__(self, "neuron", self.classifier.check_neuron(self.neuron))
        if not self.scale > 0:
            raise UserError(
                f"scale of neuron {self.neuron} must be above 0, got {self.scale}: give its "
                "largest activation over a data set, or 1."
            )

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        images = views(candidate.image, self.classifier, self.cutouts, candidate.key)
        if self.through_relu:
            with ThroughRelu():
                activations = self.classifier.activations(images, prepared=True)
        else:
            activations = self.classifier.activations(images, prepared=True)
        activation = activations[:, self.neuron].mean() / self.scale
        return -activation if self.maximise else activation


class ThroughRelu(TorchFunctionMode):
    """Within it, a ReLU that would let no gradient of an image through lets pass what raises it.

    Values are a ReLU's, and so is the gradient of an image wherever any of it passes. Source: the
    redirected ReLU of lucid (Olah et al., "Feature Visualization", Distill 2017).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _RELUS:
            return _Redirected.apply(args[0], _RELUS[func])
        return func(*args, **(kwargs or {}))


_RELUS = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), torch.inf
    ),
    F.relu6: 6.0,
}
"""Function -> where it stops rising."""


class _Redirected(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, most: float) -> Tensor:
        return x.clamp(0, most)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, ctx.most = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        ordinary = gradient * ((x > 0) & (x < ctx.most))
        on = ordinary.flatten(1).any(dim=1).view(-1, *[1] * (x.ndim - 1))
        # A descent along a negative gradient raises x.
        upwards = gradient * ((x <= 0) & (gradient < 0))
        return torch.where(on, ordinary, upwards), None
