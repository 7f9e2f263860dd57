"""Swapping one attribute on photos, by their masks: what a feature does, all else being equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from fastdigin.audit.attributes import Attribute, confidences
from fastdigin.audit.findings import Effect, mean_and_error
from fastdigin.audit.photos import AuditPhoto
from fastdigin.models.classifier import Classifier

DONORS = 6
"""At most so many photos lend their backgrounds to one swap."""
COVERED = 0.02
"""A pixel whose mask, or a neighbour's, is above this shows no pure background: edge or shadow."""

Swap = Callable[[AuditPhoto, str], Tensor | None]
"""A photo and a feature -> the photo with that feature, (3, H, W); None where it cannot be made."""


def masked_swap(attribute: Attribute, photos: Sequence[AuditPhoto]) -> Swap:
    """Swaps by masks, with what the other photos show as the material."""
    masked = [photo for photo in photos if photo.mask is not None]
    by_feature = {
        feature: [p for p in masked if p.features[attribute.name] == feature]
        for feature in attribute.features
    }
    if attribute.region == "background":
        covered = {id(p): _widened(p.mask) > COVERED for p in masked}
        return lambda photo, feature: _with_background(photo, by_feature[feature], covered)
    colours = {f: _mean_colour(group) for f, group in by_feature.items() if group}
    return lambda photo, feature: _recoloured(photo, attribute, feature, colours)


def _with_background(
    photo: AuditPhoto, donors: Sequence[AuditPhoto], covered: dict[int, Tensor]
) -> Tensor | None:
    """The object on a background that is patched together from photos that show it elsewhere."""
    if photo.mask is None:
        return None
    needed = photo.mask < 1
    lacking = [(int((covered[id(d)] & needed).sum()), n) for n, d in enumerate(donors)]
    order = [donors[n] for _, n in sorted(lacking) if donors[n] is not photo][:DONORS]
    if not order:
        return None
    # Not the same donor for all photos of a shape: the first of a few, by the photo's id.
    turn = sum(photo.item.id.encode("utf-8", "surrogatepass")) % min(4, len(order))
    order = order[turn:] + order[:turn]
    plate, hole = order[0].image.clone(), covered[id(order[0])].clone()
    for donor in order[1:]:
        free = hole & ~covered[id(donor)]
        plate[:, free] = donor.image[:, free]
        hole &= ~free
    return photo.image * photo.mask + plate * (1 - photo.mask)


def _recoloured(
    photo: AuditPhoto, attribute: Attribute, feature: str, colours: dict[str, Tensor]
) -> Tensor | None:
    """The object with every pixel's channels scaled by the ratio of the two mean colours."""
    own = photo.features[attribute.name]
    if photo.mask is None or feature not in colours or own not in colours:
        return None
    ratio = (colours[feature] / colours[own].clamp_min(1e-3))[:, None, None]
    return (photo.image * ratio).clamp(0, 1) * photo.mask + photo.image * (1 - photo.mask)


def _mean_colour(photos: Sequence[AuditPhoto]) -> Tensor:
    sums = sum((p.image * p.mask).sum(dim=(1, 2)) for p in photos)
    return sums / sum(p.mask.sum() for p in photos)


def _widened(mask_hw: Tensor) -> Tensor:
    """The largest mask within a twentieth of the image's side."""
    reach = max(1, len(mask_hw) // 20)
    return max_pool2d(mask_hw[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]


def measure_effects(
    classifier: Classifier, attribute: Attribute, photos: Sequence[AuditPhoto], class_: int,
    swap: Swap, generated: bool = False,
) -> dict[str, Effect]:  # fmt: skip
    """The effect of features on the confidence in a class, over photos of that class.

    A photo counts where all its swaps can be made. A feature that would leave no two photos, as no
    photo lends it, is left out: the others are compared with each other.
    """
    swaps = [{feature: swap(photo, feature) for feature in attribute.features} for photo in photos]
    names = list(attribute.features)
    while True:
        made = [[s[f] for f in names] for s in swaps if all(s[f] is not None for f in names)]
        if len(made) > 1 or len(names) <= 2:
            break
        names.remove(min(names, key=lambda f: sum(s[f] is not None for s in swaps)))
    if not made:
        return {}
    found_nfk = torch.stack([confidences(classifier, torch.stack(images)) for images in made])
    own_nf = found_nfk[..., class_]
    by_feature = dict(zip(names, own_nf.mean(dim=0).tolist(), strict=True))
    effects = {}
    for n, feature in enumerate(names):
        others_nk = torch.cat([found_nfk[:, :n], found_nfk[:, n + 1 :]], dim=1).mean(dim=1)
        gain_nk = found_nfk[:, n] - others_nk
        mean, error = mean_and_error(gain_nk[:, class_].tolist())
        rival = int(gain_nk.mean(dim=0).argmin())
        typical = int(gain_nk[:, class_].argsort()[len(made) // 2])
        pictures = zip(made[typical], own_nf[typical].tolist(), strict=True)
        effects[feature] = Effect(
            mean=mean,
            error=error,
            photos=len(made),
            by_feature=by_feature,
            rival=None if rival == class_ else classifier.classes[rival],
            example=dict(zip(names, pictures, strict=True)),
            generated=generated,
            gains=tuple(gain_nk[:, class_].tolist()),
        )
    return effects
