"""Latent guidance by the part of the classifier's gradient with which the diffusion model agrees.

Source: LDCE, Farid et al. 2023 (arXiv 2310.06668), section 3. The conditional minus the
unconditional prediction is the gradient of the diffusion model's implicit classifier. The external
classifier's is taken through decoder and U-Net. Where the angle between the two is above 45 degrees
it is set to zero, place by place; what is left gets the norm of the implicit one. The distance to
the photo has a gradient of its own, which is not filtered.
Simplified: DDIM steps; L1 on the latents as distance, with the sign of the difference as gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import solver_step
from fastdigin.models.classifier import Classifier
from fastdigin_bench.methods.asked import Asked
from fastdigin_bench.methods.latents import descent, with_norm_of, x0_gradient


@dataclass(frozen=True)
class LDCE:
    """scale, distance: of the two gradients, against the implicit classifier's. strength: share of
    the steps. degrees: the largest angle that counts as agreement."""

    scale: float = 4.0
    distance: float = 0.3
    degrees: float = 45.0
    strength: float = 0.8
    steps: int = 50
    name: str = "consensus guidance (LDCE)"

    @torch.no_grad()
    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        model = engine.model
        way = descent(
            engine, asked, [one.edited for one in asked], steps=self.steps, strength=self.strength
        )
        null = model.encode_prompts([""] * len(asked)).to(way.cond)
        z, x0 = way.start, way.encoded
        for _, step in way.remaining:
            graph = engine.functions.forward_with_graph(z, null, None, step)
            on_x0 = x0_gradient(model, classifier, graph.x0, asked)
            gradient, _ = engine.functions.vjp(graph, None, on_x0)
            x0 = graph.x0.detach()
            free = output_of(step, z, x0)
            implicit = model.predict(z, step.timestep, way.cond, None, step.vector) - free
            agreed = with_norm_of(consensus(gradient, implicit, self.degrees), implicit)
            back = with_norm_of((x0 - way.encoded).sign(), implicit)
            pushed = free + self.scale * agreed + self.distance * back
            z, x0 = solver_step(step.coefficients, z, pushed, None)
        return model.decode(x0)


def consensus(gradient_bchw: Tensor, implicit_bchw: Tensor, degrees: float) -> Tensor:
    """The gradient with zeros where its angle to the implicit one, over channels, is larger."""
    cosine = torch.cosine_similarity(gradient_bchw, implicit_bchw, dim=1)[:, None]
    return torch.where(cosine >= math.cos(math.radians(degrees)), gradient_bchw, 0.0)


def output_of(step, z_bchw: Tensor, x0_bchw: Tensor) -> Tensor:
    """The network's output that made x0 = c z + d out of z."""
    c, d = step.coefficients[:, 2:4, None, None, None].unbind(1)
    return (x0_bchw - c * z_bchw) / d
