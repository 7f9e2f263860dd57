"""Whether neurons fire at all on given images; explaining one that does not explains nothing."""

import logging
from collections.abc import Mapping

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import NeuronActivation

log = logging.getLogger(__name__)

CONSTANT = 1e-6
"""Activations that differ by less than this share of their size do not tell images apart."""


def check_fires(
    classifier: Classifier,
    ranges: Mapping[int, tuple[float, float]],
    count: int,
    *,
    must: bool,
) -> None:
    """Warns of neurons that do not tell the images apart or are never above zero on them.

    ranges: the smallest and largest activation of each neuron over ``count`` images of a data set.
    must: UserError for a neuron that is zero on every one of several images.
    """
    where = f"the {count} image{'s' * (count != 1)} of dataset"
    for neuron, (low, high) in ranges.items():
        name = f"neuron {neuron} of {classifier.name}"
        if low == high == 0 and must and count > 1:
            raise UserError(
                f"{name} does not fire on any of {where}: choose another neuron, or images on "
                "which it fires"
            )
        if high <= 0:
            log.warning("%s does not fire on %s: its largest activation is %.3g", name, where, high)
        elif count > 1 and high - low <= CONSTANT * high:
            log.warning("%s gives the same, %.3g, on all of %s", name, high, where)


def off_note(loss: NeuronActivation, before: float, after: float) -> str:
    """What a caption adds of a neuron that was off, so that it had no gradient at the start."""
    if before != 0:
        return ""
    if not loss.maximise:
        return " It was off already, where its gradient is zero."
    if after == 0:
        return " It was off, where its gradient is zero, and stayed so: try another start."
    return " It was off, where its gradient is zero: at first its ReLU was passed over."
