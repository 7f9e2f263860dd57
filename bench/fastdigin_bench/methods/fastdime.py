"""Classifier-guided sampling by the gradient at the one-step x0, with a mask of every step.

Source: FastDiME, Weng et al. 2024 (arXiv 2312.14223), equations 4 to 8. The classifier looks at
the denoised image, and its gradient there stands for that at the noisy one, so that nothing goes
through the U-Net. What differs little from the photo is set back to it at every step; MaskDiME
(Guo et al. 2026, arXiv 2602.18792) has such masks too. The smallest of some classifier scales
that flips is kept, as in DiME (Jeanneret et al. 2022, arXiv 2203.15636).
Simplified: on latents, so the gradient goes through the decoder and the mask has their size; DDIM
steps; the gradient is taken at the step's own x0, not at the one before; no perceptual loss, for
which there is a VGG; the gradient has the norm of the noise prediction, so that scales mean the
same for every classifier. The model was trained with prompts and gets the photo's. The last image
is the photo itself outside of the last mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import solver_step
from fastdigin.models.classifier import Classifier
from fastdigin_bench.methods.asked import Asked, stacked
from fastdigin_bench.methods.latents import descent, first_that_flips, with_norm_of, x0_gradient


@dataclass(frozen=True)
class FastDiME:
    """scales: of the classifier's gradient, against the predicted noise. strength: share of the
    steps. distance: weight of the L1 to the photo. warm_up: share of the steps taken without mask.
    threshold: of the difference, against its largest. dilation: of the mask, in latents."""

    scales: tuple[float, ...] = (0.3, 0.6, 1.2)
    steps: int = 50
    strength: float = 0.8
    distance: float = 0.001
    warm_up: float = 0.5
    threshold: float = 0.3
    dilation: int = 3
    name: str = "one-step guidance (FastDiME)"

    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        run = partial(self._run, engine, classifier)
        return first_that_flips(run, classifier, asked, self.scales)

    @torch.no_grad()
    def _run(
        self, engine: Engine, classifier: Classifier, asked: Sequence[Asked], scale: float
    ) -> Tensor:
        model = engine.model
        prompts = [one.item.prompt for one in asked]
        way = descent(engine, asked, prompts, steps=self.steps, strength=self.strength)
        z, x0, last = way.start, way.encoded, len(way.steps)
        mask = torch.ones_like(z[:, :1])
        warm = way.first + self.warm_up * (last - way.first)
        for i, step in way.remaining:
            output = model.predict(z, step.timestep, way.cond, None, step.vector)
            _, seen = solver_step(step.coefficients, z, output, None)
            gradient = x0_gradient(model, classifier, seen, asked, self.distance)
            output = output + scale * with_norm_of(gradient, output)
            z, x0 = solver_step(step.coefficients, z, output, None)
            if i >= warm:
                mask = changed_mask(x0, way.encoded, self.threshold, self.dilation)
            z = mask * z + (1 - mask) * way.photo_at(i + 1)
            x0 = mask * x0 + (1 - mask) * way.encoded
        return inside(mask, model.decode(x0).to(z), stacked(asked, classifier))


def changed_mask(x0_bchw: Tensor, photo_bchw: Tensor, threshold: float, dilation: int) -> Tensor:
    """(B, 1, h, w): 1 near differences of at least ``threshold`` times the largest, else 0."""
    size = (x0_bchw - photo_bchw).abs().sum(dim=1, keepdim=True)
    size = size / size.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    spread = max_pool2d(size, dilation, stride=1, padding=dilation // 2)
    return (spread >= threshold).to(x0_bchw.dtype)


def inside(mask_b1hw: Tensor, images_b3hw: Tensor, photos_b3hw: Tensor) -> Tensor:
    """The images where the mask, of any size, is 1, and the photos elsewhere."""
    mask = interpolate(mask_b1hw, images_b3hw.shape[-2:])
    return mask * images_b3hw + (1 - mask) * photos_b3hw
