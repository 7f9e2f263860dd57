"""Inpainting of the region that the classifier's decision is attributed to, guided by it.

Source: RCSB, Sobieski et al. 2025 (arXiv 2410.12591), section 3 and algorithm 3. Integrated
gradients are summed over squares; the squares of the largest sums are the region. Only the region
is drawn again, by a conditional sampler whose classifier gradient goes from the one-step x0
through the network and is steadied by Adam's moments. All other pixels are the photo's.
Simplified: instead of the Schroedinger bridge for inpainting (I2SB), for which there are no
weights here, the latent diffusion model inpaints by blending; the attribution is that of the
target's logit minus the logit of what the classifier sees; the prompt is the photo's; scales as
in FastDiME.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import solver_step
from fastdigin.models.classifier import Classifier
from fastdigin_bench.methods.asked import Asked, stacked, targets_of
from fastdigin_bench.methods.fastdime import inside
from fastdigin_bench.methods.latents import descent, first_that_flips, with_norm_of, x0_gradient
from fastdigin_bench.methods.ldce import output_of


@dataclass(frozen=True)
class RCSB:
    """scales: of the classifier's gradient, against the predicted noise; the smallest that flips is
    kept. area: share of the squares in the region. cell: side of a square, in pixels."""

    scales: tuple[float, ...] = (0.3, 0.6, 1.2)
    area: float = 0.3
    cell: int = 4
    strength: float = 0.8
    steps: int = 50
    path: int = 16
    name: str = "attributed region (RCSB)"

    @torch.no_grad()
    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        region = attributed_region(classifier, asked, self.area, self.cell, self.path)
        regions = dict(zip((one.id for one in asked), region, strict=True))
        run = partial(self._run, engine, classifier, regions)
        return first_that_flips(run, classifier, asked, self.scales)

    def _run(self, engine, classifier, regions, asked: Sequence[Asked], scale: float) -> Tensor:
        model = engine.model
        prompts = [one.item.prompt for one in asked]
        way = descent(engine, asked, prompts, steps=self.steps, strength=self.strength)
        region = torch.stack([regions[one.id] for one in asked]).to(way.encoded)
        small = _at_latent_size(region, way.encoded)
        z, x0, mean, square = way.start, way.encoded, 0.0, 0.0
        for count, (i, step) in enumerate(way.remaining, start=1):
            graph = engine.functions.forward_with_graph(z, way.cond, None, step)
            on_x0 = x0_gradient(model, classifier, graph.x0, asked)
            gradient, _ = engine.functions.vjp(graph, None, on_x0)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            steady = mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            output = output_of(step, z, graph.x0.detach())
            output = output + scale * with_norm_of(small * steady, output)
            z, x0 = solver_step(step.coefficients, z, output, None)
            z = small * z + (1 - small) * way.photo_at(i + 1)
        x0 = small * x0 + (1 - small) * way.encoded
        return inside(region, model.decode(x0).to(z), stacked(asked, classifier))


def attributed_region(
    classifier: Classifier, asked: Sequence[Asked], area: float, cell: int, path: int
) -> Tensor:
    """(B, 1, H, W) of 0 and 1: the squares that decide between target and source.

    Integrated gradients from black with ``path`` points (Sundararajan et al. 2017).
    """
    photos, targets = stacked(asked, classifier), targets_of(asked, classifier)
    with torch.no_grad():
        sources = classifier.logits(photos).argmax(dim=1)
    total = torch.zeros_like(photos)
    for point in range(path):
        with torch.enable_grad():
            images = ((point + 0.5) / path * photos).requires_grad_()
            logits = classifier.logits(images)
            margin = logits.gather(1, targets[:, None]) - logits.gather(1, sources[:, None])
            total += torch.autograd.grad(margin.sum(), images)[0] / path
    sums = avg_pool2d((total * photos).sum(dim=1, keepdim=True).abs(), cell)
    wanted = max(1, round(area * sums[0].numel()))
    least = sums.flatten(1).topk(wanted).values[:, -1]
    return interpolate((sums >= least[:, None, None, None]).float(), scale_factor=cell)


def _at_latent_size(region_b1hw: Tensor, like: Tensor) -> Tensor:
    """1 where any pixel of a latent is in the region."""
    factor = region_b1hw.shape[-1] // like.shape[-1]
    return max_pool2d(region_b1hw, factor)
