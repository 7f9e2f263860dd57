"""From a predicted x0 to its image, and from the losses on the image back to x0."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin.engine.job import Candidate
from fastdigin.engine.sampler import power_of_two_near
from fastdigin.engine.slot import Slot
from fastdigin.models.diffusion import LatentDiffusion


def decode_one(model: LatentDiffusion, x0_chw: Tensor) -> Tensor:
    """(3, H, W) in [0, 1], in the latents' dtype; differentiable."""
    return model.decode(x0_chw[None])[0].to(x0_chw.dtype)


@torch.enable_grad()
def loss_gradient(
    slot: Slot, decoded_3hw: Tensor, x0_chw: Tensor, weight: float, key: tuple[int, int, int]
) -> Tensor:
    """Gradient (C, h, w) of ``weight`` times the job's total loss, augmented by ``key``.

    ``decoded_3hw`` carries the decoder's graph, which leads to ``x0_chw``. The losses' graph is
    consumed before the decoder's; between the two the gradient is brought near 1 by a power of
    two, because a loss that is a mean over pixels would underflow in a half-precision decoder.
    """
    image = decoded_3hw.detach().requires_grad_()
    latents = x0_chw.detach().requires_grad_()
    total, _ = slot.loss(Candidate(image, latents, key))
    on_image, on_latents = torch.autograd.grad(
        weight * total, (image, latents), materialize_grads=True
    )
    scale = power_of_two_near(on_image[None])
    (through_decoder,) = torch.autograd.grad(decoded_3hw, x0_chw, on_image * scale)
    return through_decoder / scale + on_latents
