"""Foreground masks by a segmenter that attention prompts (DiG-IN, supplement C)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.segmenter import Prompt, Segmenter
from fastdigin.storage import TensorCache, cache_key, cached_batch

LIKELY = 0.35  # the attention mask above which a pixel may mark the object
BOX_QUANTILE = 0.97  # of those pixels' coordinates: stray ones do not stretch the box
FORMAT = 1  # to be raised when the same inputs shall give another mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """How a segmenter finds the object that attention locates.

    Args:
        segmenter: HQ-SAM or another one (models/segmenter.py).
        prompt: "points", spread over the attention, or "box", its box.
        points: how many, at least 1.
        masks: keeps them between runs; None finds them anew.

    Raises:
        UserError: an unknown prompt, or no points.

    Example:
        >>> tools = fd.PhotoTools(segmentation=fd.Segmentation(fd.Segmenter.load("hq-sam:vit_h")))

    Source: DiG-IN, supplement C.
    """

    segmenter: Segmenter
    prompt: Literal["points", "box"] = "points"
    points: int = 5
    masks: TensorCache | None = None

    def __post_init__(self) -> None:
        if self.prompt not in ("points", "box"):
            raise UserError(f"prompt of the segmenter must be points or box, got {self.prompt!r}")
        if self.points < 1:
            raise UserError(f"points must be at least 1, got {self.points}")

    def foregrounds(self, images: Sequence[Tensor], attention: Sequence[Tensor]) -> list[Tensor]:
        """Masks (H, W) of 0 and 1 for images (3, H, W), given attention masks (H, W) in [0, 1].

        Where attention locates nothing, or the segmenter finds nothing there, the attention mask
        itself is the result, with a warning.
        """
        prompts = {n: p for n, a in enumerate(attention) if (p := self._prompt(a)) is not None}
        keys: list[str | None] = [None] * len(prompts)
        if self.masks is not None:  # hashing the weights takes seconds
            weights = self.segmenter.fingerprint
            keys = [
                cache_key(FORMAT, weights, images[n], prompt.points, prompt.box)
                for n, prompt in prompts.items()
            ]
        located = [(images[n], prompt) for n, prompt in prompts.items()]

        def compute(missing: list[int]) -> list[dict[str, Tensor]]:
            masks = self.segmenter.masks(*zip(*(located[k] for k in missing), strict=True))
            return [{"mask": mask} for mask in masks]

        masks = [kept["mask"] for kept in cached_batch(self.masks, keys, compute)]
        found = dict(zip(prompts, masks, strict=True))
        return [self._or_attention(found.get(n), mask) for n, mask in enumerate(attention)]

    def _prompt(self, attention_hw: Tensor) -> Prompt | None:
        likely = attention_hw > LIKELY
        if not likely.any():
            return None
        if self.prompt == "box":
            return Prompt(box=quantile_box(likely))
        return Prompt(points=spread_points(attention_hw * likely, self.points))

    def _or_attention(self, mask: Tensor | None, attention: Tensor) -> Tensor:
        if mask is not None and mask.any():
            return mask.to(attention)
        log.warning(
            "%s found no foreground: the attention mask is used instead", self.segmenter.name
        )
        return attention


def spread_points(weights_hw: Tensor, count: int) -> Tensor:
    """(N, 2) pixels (x, y): the heaviest, then always the one farthest from all before it.

    "Farthest" is the distance to the nearest of them times the weight: points spread over the
    object without leaving it for its faint rim. Fewer than ``count`` where there are fewer pixels.
    """
    rows, columns = weights_hw.nonzero(as_tuple=True)
    places = torch.stack([columns, rows], dim=1).to(torch.float64).cpu()
    weights = weights_hw[rows, columns].to(torch.float64).cpu()
    chosen = [int(weights.argmax())]
    distances = torch.full_like(weights, torch.inf)
    while len(chosen) < min(count, len(places)):
        to_last = (places - places[chosen[-1]]).square().sum(dim=1).sqrt()
        distances = torch.minimum(distances, to_last)
        chosen.append(int((weights * distances).argmax()))
    return places[chosen].float()


def quantile_box(likely_hw: Tensor) -> Tensor:
    """(left, top, right, bottom) around the pixels that are set, but for the outermost 3%."""
    rows, columns = (x.double().cpu() for x in likely_hw.nonzero(as_tuple=True))
    quantiles = torch.tensor([1 - BOX_QUANTILE, BOX_QUANTILE], dtype=torch.float64)
    (left, right), (top, bottom) = (torch.quantile(x, quantiles) for x in (columns, rows))
    return torch.stack([left, top, right, bottom]).float()
