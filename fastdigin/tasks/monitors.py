"""What is read off the plain image at every iteration, beside the losses."""

from dataclasses import dataclass

from torch import Tensor

from fastdigin.models.classifier import Classifier


@dataclass(frozen=True)
class Confidence:
    """The probability of one class."""

    classifier: Classifier
    index: int

    def __call__(self, image_3hw: Tensor) -> Tensor:
        return self.classifier.probabilities(image_3hw[None])[0, self.index]


@dataclass(frozen=True)
class Activation:
    """The activation of one neuron."""

    classifier: Classifier
    neuron: int

    def __call__(self, image_3hw: Tensor) -> Tensor:
        return self.classifier.activations(image_3hw[None])[0, self.neuron]
