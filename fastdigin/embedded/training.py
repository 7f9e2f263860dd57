"""The training loop of autoencoder and diffusion model: the same seed gives the same weights.

Every random draw of a step comes from a generator seeded by (seed, step).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up, a flat part, then a cosine to zero; weights are averaged."""

    steps: int
    rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    warmup: int = 100
    flat: float = 0.5
    """Share of the steps at the full rate, warm-up included."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is returned."""
    clip: float = 1.0
    """Largest norm of the gradient over all parameters."""

    def rate_at(self, step: int) -> float:
        """Learning rate of ``step``, counted from zero."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = max(0.0, step / self.steps - self.flat) / (1 - self.flat)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * fall))


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
) -> nn.Module:
    """Minimises ``loss_of(model, generator)``; returns the averaged model, frozen, in eval mode.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.rate, schedule.betas, weight_decay=schedule.weight_decay
    )
    model.train()
    bar = tqdm(range(schedule.steps), desc=name)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(model, generator)
        if not loss.isfinite():
            raise FloatingPointError(f"The loss of {name} is {loss.item()} at step {step}.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        _blend(average, model, schedule.average, step)
        bar.set_postfix(loss=f"{loss.item():.4f}")
    return average


def _blend(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the model; faster in the beginning, to forget the random start."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
