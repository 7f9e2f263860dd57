"""A classifier's passes: one for all who ask about an image, one for many images at once.

Inside ``with sharing()`` a loss, a monitor and the history that ask a classifier about the same
image get what one pass gave, and ``look_together`` makes the passes of many images in one call. An
image is told by its memory, which therefore may not be changed in place meanwhile.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Found = tuple[Tensor | None, ...]

Call = Callable[..., Found]

_shared: dict[Hashable, tuple[Tensor, Found]] | None = None
_graphs: Call | None = None
_width = 1


@dataclass(frozen=True)
class Look:
    """What a loss will ask: ``classifier`` about crops of an image, or about the image.

    cutouts: makes the crops of ``key``; with None for either, the image is looked at as it is.
    features: whether the neurons are wanted beside the logits.
    """

    classifier: Any
    image_3hw: Tensor
    cutouts: Any = None
    key: tuple[int, int, int] | None = None
    features: bool = False


@contextmanager
def sharing(graphs: Call | None = None, width: int = 1) -> Iterator[None]:
    """Inside, passes are kept for whoever asks for the same again.

    graphs: calls functions of tensors, (key, function, *tensors), by what it recorded of them; then
    ``look_together`` always makes the passes of ``width`` images.
    """
    global _shared, _graphs, _width
    before = _shared, _graphs, _width
    _shared, _graphs, _width = {}, graphs, width
    try:
        yield
    finally:
        _shared, _graphs, _width = before


def called(key: Hashable, function: Callable[..., Found], *inputs: Tensor) -> Found:
    """``function(*inputs)``, by its graph where there are any."""
    return function(*inputs) if _graphs is None else _graphs(key, function, *inputs)


def filled(rows: Tensor, width: int) -> Tensor:
    """``rows`` with the last one repeated to ``width``."""
    missing = width - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def once(
    what: Hashable,
    image: Tensor,
    make: Callable[[], Found],
    enough: Callable[[Found], bool] = lambda found: True,
) -> Found:
    """``make()``, or what it gave for the same image before where that is ``enough``.

    What was made without a graph does not serve where one is wanted.
    """
    if _shared is None:
        return make()
    key, with_graph = _key(what, image), torch.is_grad_enabled() and image.requires_grad
    _, found = _shared.get(key, (image, None))
    if found is None or not enough(found) or (with_graph and not _has_graph(found)):
        found = make()
        _shared[key] = image, found
    return found if with_graph else tuple(None if x is None else x.detach() for x in found)


def look_together(looks: Sequence[Look]) -> None:
    """Makes the passes of many images, one for each classifier and size of crops."""
    groups: dict[Hashable, list[Look]] = {}
    for look in looks:
        cutouts = None if look.key is None else look.cutouts
        kind = (look.classifier.pass_key, look.classifier.view_key, cutouts)
        groups.setdefault(kind, []).append(look)
    for group in groups.values():
        of_each = {_key(look.key, look.image_3hw): look for look in group}
        if len(of_each) > 1 or _graphs is not None:
            _look(list(of_each.values()), any(look.features for look in group))


def _look(looks: Sequence[Look], features: bool) -> None:
    first = looks[0]
    cutouts = None if first.key is None else first.cutouts

    def make() -> tuple[Tensor]:
        images = torch.stack([look.image_3hw for look in looks])
        if _graphs is not None:
            images = filled(images, _width)
        if cutouts is None:
            return (first.classifier.prepare(images)[:, None],)
        keys = [look.key for look in looks]
        keys += keys[-1:] * (len(images) - len(keys))
        return (cutouts.many(images, first.classifier.size, keys),)

    # Classifiers of one size look at the same crops.
    of_all = tuple(
        _key(view_of(look.classifier, cutouts, look.key), look.image_3hw) for look in looks
    )
    (views,) = once(of_all, first.image_3hw, make)
    found = first.classifier.look(views.flatten(0, 1), features)
    for i, look in enumerate(looks):
        own = views[i]
        _keep(view_of(look.classifier, cutouts, look.key), look.image_3hw, (own,))
        rows = [None if x is None else x.unflatten(0, views.shape[:2])[i] for x in found]
        _keep(look.classifier.pass_key, own, tuple(rows))


def _has_graph(found: Found) -> bool:
    return any(x is not None and x.requires_grad for x in found)


def view_of(
    classifier: Any, cutouts: Any = None, key: tuple[int, int, int] | None = None
) -> Hashable:
    """What ``once`` calls a classifier's view of an image."""
    if cutouts is None or key is None:
        return classifier.view_key
    return classifier.size, cutouts, key


def _keep(what: Hashable, image: Tensor, found: Found) -> None:
    _shared[_key(what, image)] = image, found


def _key(what: Hashable, image: Tensor) -> Hashable:
    """An image of (3, H, W) and the batch that holds it alone are the same."""
    shape = image.shape[1:] if image.ndim == 4 and len(image) == 1 else image.shape
    strides = image.stride()[-len(shape) :]
    place = image.untyped_storage()._cdata, image.storage_offset()
    return (what, *place, tuple(shape), strides, image._version)
