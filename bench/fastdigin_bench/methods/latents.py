"""What the methods that guide a sampler share: a noised start, and the loop from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import Step
from fastdigin.engine.steps import Steps
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import over
from fastdigin_bench.methods.asked import Asked, stacked, target_log, targets_of


@dataclass(frozen=True)
class Descent:
    """The last steps of a sampler, from the noised latents of photos.

    encoded: (B, C, h, w), the photos' own latents. noise: (B, C, h, w). first: the step at which
    it starts; the number of steps where nothing is noised. cond, null: (B, L, D).
    """

    model: LatentDiffusion
    encoded: Tensor
    noise: Tensor
    cond: Tensor
    null: Tensor | None
    steps: Steps
    first: int

    @property
    def start(self) -> Tensor:
        """The latents (B, C, h, w) at the first step."""
        return self.photo_at(self.first)

    @property
    def remaining(self) -> list[tuple[int, Step]]:
        """(number, step) of the steps to be taken."""
        return [(i, self.steps[i]) for i in range(self.first, len(self.steps))]

    def photo_at(self, i: int) -> Tensor:
        """The photos' latents with the noise that step i reads; without any behind the last."""
        if i == len(self.steps):
            return self.encoded
        signal, noise = self.model.ddim_table(len(self.steps)).levels[i].tolist()
        return signal * self.encoded + noise * self.noise


@torch.no_grad()
def descent(
    engine: Engine,
    asked: Sequence[Asked],
    prompts: Sequence[str],
    *,
    steps: int,
    strength: float,
    guidance_scale: float = 1.0,
) -> Descent:
    """Noises the photos' latents as far as ``strength``, a share of the steps, says.

    guidance_scale: with 1 there is no null branch.
    """
    model = engine.model
    encoded = torch.stack([model.encode_image(one.image) for one in asked]).to(model.state_dtype)
    guided = model.has_null_branch(guidance_scale)
    guidance = torch.full((len(asked),), guidance_scale).to(encoded)
    return Descent(
        model=model,
        encoded=encoded,
        noise=torch.stack([one.noise(model.latent_shape) for one in asked]).to(encoded),
        cond=model.encode_prompts(prompts).to(encoded),
        null=model.encode_prompts([""] * len(asked)).to(encoded) if guided else None,
        steps=Steps(model, steps, guidance, guided),
        first=steps - round(strength * steps),
    )


def x0_gradient(
    model: LatentDiffusion, classifier: Classifier, x0_bchw: Tensor, asked: Sequence[Asked],
    distance: float = 0.0,
) -> Tensor:  # fmt: skip
    """Of -log p(target) + distance * L1 to the photo, in the decoded latents.

    (B, C, h, w). It goes through the decoder, and no further. L1 is the sum over pixels
    and channels, as in DiME.
    """
    with torch.enable_grad():
        x0 = x0_bchw.detach().requires_grad_()
        images = model.decode(x0).to(x0.dtype)
        loss = -target_log(classifier, images, targets_of(asked, classifier)).sum()
        if distance:
            loss = loss + distance * (images - stacked(asked, classifier)).abs().sum()
        (gradient,) = torch.autograd.grad(loss, x0)
    return gradient


def with_norm_of(gradient: Tensor, like: Tensor) -> Tensor:
    """``gradient``, each sample with the Euclidean norm of the same sample of ``like``."""
    own, wanted = (x.flatten(1).norm(dim=1) for x in (gradient, like))
    return gradient * over(wanted / own.clamp_min(1e-12), gradient)


@torch.no_grad()
def first_that_flips(run, classifier: Classifier, asked: Sequence[Asked], strengths) -> Tensor:
    """Each photo's image of the smallest strength at which the classifier sees the target.

    run: makes the images of some photos with a strength. Where none does it is the largest one's.
    DiME, FastDiME and ACE choose their classifier scale in this way.
    """
    left, found = list(range(len(asked))), [None] * len(asked)
    for strength in strengths:
        images = run([asked[n] for n in left], strength)
        seen = classifier.logits(images).argmax(dim=1).tolist()
        for n, image in zip(left, images, strict=True):
            found[n] = image
        left = [n for n, index in zip(left, seen, strict=True) if index != asked[n].target]
        if not left:
            break
    return torch.stack(found)
