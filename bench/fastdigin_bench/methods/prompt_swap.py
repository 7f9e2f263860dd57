"""The prompt with the target's word, from the noised photo; the classifier has no say.

Source: SDEdit, Meng et al. 2022 (arXiv 2108.01073), algorithm 1, with classifier-free guidance.
Simplified: DDIM steps instead of a stochastic solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import unrolled_forward
from fastdigin.models.classifier import Classifier
from fastdigin_bench.methods.asked import Asked
from fastdigin_bench.methods.latents import descent


@dataclass(frozen=True)
class PromptSwap:
    """strength: share of the steps that are taken again; with 0 it is the autoencoder's image."""

    strength: float = 0.8
    steps: int = 20
    guidance_scale: float = 3.0
    name: str = "prompt swap (SDEdit)"

    @torch.no_grad()
    def __call__(self, engine: Engine, classifier: Classifier, asked: Sequence[Asked]) -> Tensor:
        way = descent(
            engine, asked, [one.edited for one in asked], steps=self.steps,
            strength=self.strength, guidance_scale=self.guidance_scale,
        )  # fmt: skip
        x0, steps = way.start, [step for _, step in way.remaining]
        if steps:
            texts = (text[:, None].expand(-1, len(steps), -1, -1) for text in (way.cond, way.null))
            x0 = unrolled_forward(engine.functions, way.start, *texts, steps, 1).x0s[-1]
        return engine.model.decode(x0)
