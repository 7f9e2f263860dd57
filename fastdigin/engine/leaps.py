"""Which steps the gradient goes through: all of them, or a few that stand for their neighbours.

The forward always takes every step. On its way back a gradient may leap: from a later step's latent
to an earlier step's outputs, as if noise and x0 had stayed what the earlier step predicted,

    z_end = signal_end x0 + noise_end eps = on_z z_prev + on_x0 x0

so that the U-Net is differentiated at the earlier step alone. That step's text gradient is shared
out among the steps that were leapt over.

Source: after Liu et al. 2026 (LeapAlign, arXiv 2604.15311), which trains flow models through two
leaps. What it gives here is in bench/NOTES.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdigin.errors import UserError
from fastdigin.models.ddim import DDIMTable


@dataclass(frozen=True)
class Leap:
    """The gradient of step ``start`` stands for all steps before ``end``.

    on_z, on_x0: what the latent that step ``end`` reads has of the step's z_prev and of its x0.
    """

    start: int
    end: int
    on_z: float = 1.0
    on_x0: float = 0.0


def exact_path(steps: int) -> list[Leap]:
    """Through every step."""
    return [Leap(i, i + 1) for i in range(steps)]


def leaping_path(table: DDIMTable, last_steps: int, length: int | None) -> list[Leap]:
    """Through the last steps, which carry the loss, and before them through every ``length``-th.

    None is 1, the exact path.

    Raises UserError for a solver that adds noise or looks back, where a step's outputs do not tell
    the later latents.
    """
    if length in (None, 1):
        return exact_path(len(table))
    if table.is_multistep or table.noise is not None:
        raise UserError(
            f"leap {length} needs a solver of first order that adds no noise, such as DDIM: leave "
            "leap out for this model"
        )
    first_loss_step, levels = max(len(table) - last_steps, 0), table.levels.tolist()
    found = []
    for start in range(0, first_loss_step, length):
        end = min(start + length, first_loss_step)
        found.append(Leap(start, end, *_weights(levels[start + 1], levels[end])))
    return found + [Leap(i, i + 1) for i in range(first_loss_step, len(table))]


def _weights(after: Sequence[float], end: Sequence[float]) -> tuple[float, float]:
    """(on_z, on_x0) from the levels of z_prev and of the end; (1, 0) where they are the same."""
    (signal, noise), (signal_end, noise_end) = after, end
    on_z = noise_end / noise
    return on_z, signal_end - signal * on_z
