"""What keeps an edited photo near the original: distances to the source, as settings."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastdigin.errors import UserError, check_choice
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import Distance, FeatureDistance, LpipsDistance, load_lpips
from fastdigin.objectives.distances import REGIONS, Region
from fastdigin.tasks.sources import Source

Kind = Literal[
    "pixels-l1", "pixels-l2", "latents-l1", "latents-l2", "lpips", "features-cosine", "features-l2"
]  # fmt: skip
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Regulariser:
    """weight * the distance of ``kind`` to the source photo's reconstruction, within ``region``.

    L1 and L2 are means of mask * |difference|^p over ALL pixels or latent elements (DiG-IN,
    supplement C). "lpips" needs the extra ``lpips`` and its weights. "features-cosine" and
    "features-l2" compare the features of the task's ``embedding``
    (:class:`fastdigin.FeatureDistance`).

    Args:
        kind: the distance.
        region: where it counts; "foreground" is the mask of the photo.
        weight: of the distance in the total, above 0.

    Raises:
        UserError: a word that is none of those above, or a weight that is not above 0.

    Example:
        >>> fd.Regulariser("pixels-l2", "background", 250.0)
    """

    kind: Kind
    region: Region
    weight: float

    def __post_init__(self) -> None:
        check_choice("regulariser kind", self.kind, KINDS)
        check_choice("regulariser region", self.region, REGIONS)
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"regulariser weight must be above 0, got {self.weight!r}")

    @classmethod
    def parse(cls, text: str) -> Regulariser:
        """From "KIND:REGION:WEIGHT", for example "pixels-l2:background:250"."""
        parts = text.split(":")
        try:
            kind, region, weight = parts[0], parts[1], float(parts[2])
        except (IndexError, ValueError):
            parts = []
        if len(parts) != 3:
            raise UserError(
                f"regulariser {text!r} is not understood: write KIND:REGION:WEIGHT, for example "
                "pixels-l2:background:250"
            )
        return cls(kind, region, weight)

    @property
    def name(self) -> str:
        return f"{self.kind.replace('-', '_')}_{self.region}"


def losses_of(
    regularisers: Sequence[Regulariser], source: Source, embedding: Classifier | None = None
) -> list[Any]:
    """The regularisers as losses of one source's job."""
    losses: list[Any] = []
    for item in regularisers:
        common = {
            "region": item.region, "mask": source.mask, "weight": item.weight, "name": item.name,
        }  # fmt: skip
        if item.kind == "lpips":
            network = _lpips_network(source.mask.device)
            losses.append(LpipsDistance(network, source.reconstruction, **common))
            continue
        space, norm = item.kind.split("-")
        if space == "features":
            losses.append(
                FeatureDistance(embedding.activations, source.reconstruction, norm, **common)
            )
        else:
            latents = source.inversion.trajectory[-1]
            reference = source.reconstruction if space == "pixels" else latents
            losses.append(Distance(reference, space, norm, **common))
    return losses


def check_regularisers(
    regularisers: Sequence[Regulariser], device: Any, embedding: Classifier | None
) -> None:
    """Raises UserError before any work: one given twice, LPIPS or features without a network."""
    of_features = [item for item in regularisers if item.kind.startswith("features")]
    if of_features and embedding is None:
        raise UserError(
            f"regulariser {of_features[0].kind} needs an embedding: give one, such as "
            "open_clip:MODEL/PRETRAINED"
        )
    if embedding is not None and not of_features:
        raise UserError(
            f"embedding {embedding.name} has no use: give a regulariser of kind features-cosine or "
            "features-l2"
        )
    for name, count in Counter(item.name for item in regularisers).items():
        if count > 1:
            raise UserError(f"regulariser {name} is given {count} times: give one weight for it")
    if any(item.kind == "lpips" for item in regularisers):
        _lpips_network(device)


@functools.lru_cache(maxsize=1)
def _lpips_network(device: Any) -> Any:
    return load_lpips().to(device)
