"""The photos of a data set that activate neurons most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.retrieval.features import best_of, feature_blocks
from fastdigin.storage import TensorCache, fingerprint


@dataclass(frozen=True)
class Activating:
    """How strongly neurons of one classifier fire on a data set.

    Args:
        top: neuron -> (activation, photo), the strongest first.
        ranges: neuron -> its smallest and largest activation.
        seen: how many photos were looked at.
        unreadable: photo -> why it was not.
        fingerprint: of the names and sizes of the photos that were looked at.

    Example:
        >>> low, high = fd.most_activating(classifier, [76], photos).ranges[76]
    """

    top: dict[int, list[tuple[float, ImageInput]]]
    ranges: dict[int, tuple[float, float]]
    seen: int
    unreadable: dict[str, str]
    fingerprint: str


def most_activating(
    classifier: Classifier,
    neurons: Sequence[int | str],
    photos: Sequence[ImageInput],
    *,
    top: int = 9,
    cache: TensorCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Activating:
    """The ``top`` photos of each neuron of the classifier's layer, whatever the photos' number.

    Photos stream through in blocks, each prepared as the classifier's own transform does it.

    Args:
        classifier: whose layer holds the neurons.
        neurons: numbers in that layer.
        photos: see ``photo_files``.
        top: photos to keep for each neuron, at least 1.
        cache: keeps the activations of all neurons between runs, so that what is cut off goes on
            and other neurons cost nothing.
        on_progress: called with the number of photos that were just done.

    Returns:
        The photos, and the ranges of the activations.

    Raises:
        UserError: a neuron does not exist, or no photo can be read.

    Example:
        >>> found = fd.most_activating(classifier, [76, 3], fd.photo_files(["photos/"]))
        >>> activation, photo = found.top[76][0]
    """
    if top < 1:
        raise UserError(f"top must be at least 1, got {top}")
    numbers = list(dict.fromkeys(classifier.check_neuron(neuron) for neuron in neurons))
    if not numbers:
        raise UserError("neurons is empty: name at least one")
    found: dict[int, list[tuple[float, ImageInput]]] = {neuron: [] for neuron in numbers}
    lows, seen, unreadable = torch.full((len(numbers),), torch.inf), 0, {}
    for block in feature_blocks(classifier, photos, cache, on_progress):
        unreadable |= block.unreadable
        if not block.photos:
            continue
        seen += len(block.photos)
        activations_nk = block.features_nf[:, numbers]
        lows = torch.minimum(lows, activations_nk.amin(dim=0))
        for neuron, activations_n in zip(numbers, activations_nk.T, strict=True):
            found[neuron] = best_of(top, found[neuron], block.photos, activations_n)
    if not seen:
        first = next(iter(unreadable.values()), "there are none")
        raise UserError(f"none of the {len(photos)} photos can be read ({first})")
    ranges = {n: (low, found[n][0][0]) for n, low in zip(numbers, lows.tolist(), strict=True)}
    sizes = [(p.id, _size(p)) for p in photos if p.id not in unreadable]
    return Activating(found, ranges, seen, unreadable, fingerprint(*sizes))


def _size(photo: ImageInput) -> int | str:
    """Tells photos apart without reading them: a file's bytes; a tensor's own fingerprint."""
    if isinstance(photo.image, Tensor):
        return fingerprint(photo.image)
    return photo.image.stat().st_size
