"""Making one neuron of a classifier fire more, or less."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.passes import Look
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
            gradient would reach it, the gradient goes through.
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
        if self.through_relu:
            object.__setattr__(self, "classifier", self.classifier.passing_relu())
        if not self.scale > 0:
            raise UserError(
                f"scale of neuron {self.neuron} must be above 0, got {self.scale}: give its "
                "largest activation over a data set, or 1."
            )

    def look(self, candidate: Any) -> Look:
        """What it will ask its classifier, so that the engine can ask for many images at once."""
        return Look(self.classifier, candidate.image, self.cutouts, candidate.key, features=True)

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        images = views(candidate.image, self.classifier, self.cutouts, candidate.key)
        activations = self.classifier.activations(images, prepared=True)
        activation = activations[:, self.neuron].mean() / self.scale
        return -activation if self.maximise else activation
