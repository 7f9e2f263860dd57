"""Making a classifier more, or less, sure of a class; or one of its neurons fire more, or less."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdigin.errors import UserError, check_choice
from fastdigin.models.classifier import Classifier
from fastdigin.models.passes import Look
from fastdigin.objectives.augmentation import Cutouts, views

FORMS = ("conf", "log_conf", "logits")


@dataclass(frozen=True, eq=False)
class ClassConfidence:
    """Raises (``maximise``) or lowers a classifier's confidence p in one class.

    Minimised, as a mean over the crops, z being the logits and c the class:

        form        maximise                      otherwise
        conf        1 - p                         p
        log_conf    -log p  (cross-entropy)       -log(1 - p)
        logits      max_{j != c} z_j - z_c        z_c - max_{j != c} z_j

    Where classes are true each for itself (``Classifier.activation`` is "sigmoid"), p is the
    sigmoid of z_c, and the only other logit is 0.

    Args:
        classifier: on the device of the images.
        index: the class, as an index or a name.
        form: "conf", "log_conf" or "logits".
        maximise: whether the confidence shall rise.
        weight: of this loss in the total.
        cutouts: the crops; None looks at the plain image always.
        name: in the history.

    Raises:
        UserError: a class that the classifier does not have, or an unknown form.

    Example:
        >>> loss = ClassConfidence(classifier, "robin", cutouts=Cutouts())
        >>> job = Job("id", z, text, null, losses=[loss])

    Source: DiG-IN, sections 4.1 and 4.2. Its code takes "log_conf" for counterfactuals and
    "conf" for disagreement.
    """

    classifier: Classifier
    index: int | str
    form: Literal["conf", "log_conf", "logits"] = "log_conf"
    maximise: bool = True
    weight: float = 1.0
    cutouts: Cutouts | None = None
    name: str = "confidence"

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        object.__setattr__(self, "index", self.classifier.class_index(self.index))

    def look(self, candidate: Any) -> Look:
        """What it will ask its classifier, so that the engine can ask for many images at once."""
        return Look(self.classifier, candidate.image, self.cutouts, candidate.key)

    def __call__(self, candidate: Any) -> Tensor:
        """The scalar for a candidate (see :mod:`fastdigin.objectives`)."""
        images = views(candidate.image, self.classifier, self.cutouts, candidate.key)
        logits, index = self.classifier.logits(images, prepared=True), self.index
        if self.classifier.activation == "sigmoid":  # the class, or not: the logits z and 0
            logits, index = pad(logits[:, index : index + 1], (0, 1)), 0
        if self.form == "conf":
            confidence = torch.softmax(logits, dim=1)[:, index].mean()
            return 1 - confidence if self.maximise else confidence
        if self.form == "log_conf":
            logs = torch.log_softmax(logits, dim=1)
            if self.maximise:
                return -logs[:, index].mean()
            return -_others(logs, index).logsumexp(dim=1).mean()
        margin = logits[:, index] - _others(logits, index).max(dim=1).values
        return -margin.mean() if self.maximise else margin.mean()


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


def _others(scores_bc: Tensor, index: int) -> Tensor:
    """The scores with that of the class at minus infinity."""
    is_class = torch.arange(scores_bc.shape[1], device=scores_bc.device) == index
    return scores_bc.masked_fill(is_class, -torch.inf)
