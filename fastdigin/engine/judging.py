"""From predicted x0 to images, to the losses on them, and back: several at once.

How many is the plan's width. It is 1 on CPUs, where no image may change a bit of another; a GPU has
decoder and classifiers work on as many as memory holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.graphs import Graphs
from fastdigin.engine.job import Candidate
from fastdigin.engine.slot import Slot
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.passes import filled, look_together, sharing
from fastdigin.models.precision import over, power_of_two_near


@dataclass(frozen=True)
class Prediction:
    """A predicted x0 (C, h, w) that counts for a slot.

    step: of the K that count for the slot, the earliest being 0. weight: of its loss. last: whether
    it is the last of them, whose plain image makes the history.
    """

    slot: Slot
    x0_chw: Tensor
    step: int
    weight: float
    last: bool

    @property
    def key(self) -> tuple[int, int, int]:
        """From which its crops are drawn."""
        return self.slot.job.seed, self.slot.iteration, self.step


def predictions_of(
    slots: Sequence[Slot], x0s: Sequence[Tensor]
) -> list[tuple[int, int, Prediction]]:
    """(k, b, x0s[k][b] with what it is for) of all that count, the earliest steps first."""
    found = []
    for k, b in ((k, b) for k in range(len(x0s)) for b in range(len(slots))):
        slot, last = slots[b], k == len(x0s) - 1
        count = min(slot.job.settings.last_steps, len(x0s))
        step = k - len(x0s) + count
        if slot.active and step >= 0 and (last or slot.updates_left):
            weight = 2 * (step + 1) / (count * (count + 1))
            found.append((k, b, Prediction(slot, x0s[k][b], step, weight, last)))
    return found


def judge(
    model: LatentDiffusion,
    predictions: Sequence[Prediction],
    width: int = 1,
    graphs: Graphs | None = None,
) -> list[Tensor]:
    """Gradients (C, h, w) of the weighted losses; tells slots of the images of their last steps.

    One decode serves an image's loss and the history. A slot without updates left has a gradient
    of zero. What is replayed from ``graphs`` is always done for ``width`` images.
    """

    def decode(x0_bchw: Tensor) -> tuple[Tensor]:
        return (model.decode(x0_bchw).to(x0_bchw.dtype),)

    moving = [each.slot.updates_left for each in predictions]
    x0_bchw = torch.stack([each.x0_chw for each in predictions]).detach()
    with torch.set_grad_enabled(any(moving)):
        x0_bchw.requires_grad_(any(moving))
        if graphs is None:
            (decoded_b3hw,) = decode(x0_bchw)
        else:
            (decoded_b3hw,) = graphs("decode", decode, filled(x0_bchw, width))
            decoded_b3hw = decoded_b3hw[: len(predictions)]
    images = [
        image.detach().requires_grad_(own) for image, own in zip(decoded_b3hw, moving, strict=True)
    ]
    latents = [x0.detach().requires_grad_(own) for x0, own in zip(x0_bchw, moving, strict=True)]
    with sharing(graphs, width):
        on_image, on_latents = _loss_gradients(predictions, images, latents)
        _evaluate(predictions, images, latents)
    if not any(moving):
        return on_latents
    # Between the losses and the decoder the gradient is brought near 1 by a power of two: a loss
    # that is a mean over pixels would underflow in a half-precision decoder.
    on_image_b3hw = torch.stack(on_image)
    scale = power_of_two_near(on_image_b3hw)
    (through_decoder,) = torch.autograd.grad(
        decoded_b3hw, x0_bchw, on_image_b3hw * over(scale, on_image_b3hw)
    )
    return list(through_decoder / over(scale, through_decoder) + torch.stack(on_latents))


@torch.enable_grad()
def _loss_gradients(
    predictions: Sequence[Prediction], images: Sequence[Tensor], latents: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """On images (3, H, W) and latents (C, h, w); zeros where a slot has no updates left."""
    moving = [
        (each, Candidate(image, x0, each.key))
        for each, image, x0 in zip(predictions, images, latents, strict=True)
        if each.slot.updates_left
    ]
    if not moving:
        return [torch.zeros_like(x) for x in images], [torch.zeros_like(x) for x in latents]
    _look_ahead(moving)
    totals = [each.weight * each.slot.loss(candidate)[0] for each, candidate in moving]
    if not all(total.requires_grad for total in totals):
        raise RuntimeError("the losses depend on neither image nor latents: they have no gradient")
    leaves = [x for x in (*images, *latents) if x.requires_grad]
    found = iter(torch.autograd.grad(sum(totals), leaves, materialize_grads=True))
    return tuple(
        [next(found) if x.requires_grad else torch.zeros_like(x) for x in given]
        for given in (images, latents)
    )


@torch.no_grad()
def _evaluate(
    predictions: Sequence[Prediction], images: Sequence[Tensor], latents: Sequence[Tensor]
) -> None:
    last = [
        (each, Candidate(image.detach(), x0.detach()))
        for each, image, x0 in zip(predictions, images, latents, strict=True)
        if each.last
    ]
    _look_ahead(last)
    for each, candidate in last:
        each.slot.evaluate(candidate.image, candidate.latents)


def _look_ahead(pairs: Sequence[tuple[Prediction, Candidate]]) -> None:
    """Lets each classifier look at all images at once, as far as losses say what they will ask."""
    look_together([
        loss.look(candidate)
        for each, candidate in pairs
        for loss in each.slot.job.losses
        if hasattr(loss, "look")
    ])  # fmt: skip
