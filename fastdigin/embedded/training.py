"""A training loop that survives interruption: the same seed gives the same weights, paused or not.

Every random draw of a step comes from a generator seeded by (seed, step), and model, averaged
weights, optimiser and step are written together, so a run that continues from a checkpoint takes
the very steps that an uninterrupted run takes.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdigin.errors import UserError

CHECKPOINT_EVERY = 200


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
    work: Path,
    seed: int,
    preview: Callable[[nn.Module, int], None] | None = None,
    preview_every: int = 500,
) -> nn.Module:
    """Minimises ``loss_of(model, generator)``; returns the averaged model, frozen, in eval mode.

    ``work`` receives the checkpoint ``NAME.pt`` and the log ``NAME.jsonl`` (step, loss, rate).
    ``preview(averaged model, step)`` is called every ``preview_every`` steps and at the end.

    Raises:
        UserError: ``work`` holds a checkpoint of another schedule, seed or network.
        FloatingPointError: the loss is not finite.
    """
    work.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.rate, schedule.betas, weight_decay=schedule.weight_decay
    )
    checkpoint = work / f"{name}.pt"
    identity = json.dumps({"schedule": asdict(schedule), "seed": seed, "network": _shapes(model)})
    start = _resume(checkpoint, identity, model, average, optimizer)

    model.train()
    bar = tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, desc=name)
    smooth = None
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

        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == schedule.steps:
            _save(checkpoint, identity, model, average, optimizer, done)
            with open(work / f"{name}.jsonl", "a", encoding="utf-8") as log:
                row = {"step": done, "loss": round(smooth, 5), "rate": schedule.rate_at(step)}
                log.write(json.dumps(row) + "\n")
        if preview and (done % preview_every == 0 or done == schedule.steps):
            preview(average, done)
    return average


def _blend(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the model; faster in the beginning, to forget the random start."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def _resume(checkpoint: Path, identity: str, model, average, optimizer) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    if state["identity"] != identity:
        raise UserError(
            f"--work: {checkpoint} belongs to another schedule, seed or network; "
            "name another folder, or delete the file to train anew."
        )
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save(checkpoint: Path, identity: str, model, average, optimizer, step: int) -> None:
    state = {
        "identity": identity,
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)
