"""Making a classifier more, or less, sure of a class."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdigin.errors import check_choice
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


def _others(scores_bc: Tensor, index: int) -> Tensor:
    """The scores with that of the class at minus infinity."""
    is_class = torch.arange(scores_bc.shape[1], device=scores_bc.device) == index
    return scores_bc.masked_fill(is_class, -torch.inf)
