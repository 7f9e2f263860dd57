"""How strongly an edit holds at each step of the sampler: for injection and for blending."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastdigin.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """1 from ``start`` until ``until``, else 0.

    Args:
        until: a fraction of the T steps, in [0, 1]. Step i counts where i / T is below it.
        start: likewise, the first fraction that counts.

    Raises:
        UserError: a fraction outside [0, 1].

    Example:
        >>> Threshold(0.3).weights(5)
        (1.0, 1.0, 0.0, 0.0, 0.0)

    Source: DiG-IN's code calls it "threshold_0.0_0.3".
    """

    until: float = 0.3
    start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("until", "start"):
            fraction = getattr(self, name)
            if not 0 <= fraction <= 1:
                raise UserError(f"{name} must be a fraction from 0 to 1, got {fraction!r}")

    def weights(self, steps: int) -> tuple[float, ...]:
        """One weight a step."""
        return tuple(float(self.start <= i / steps < self.until) for i in range(steps))


@dataclass(frozen=True)
class Cosine:
    """Falls from 1 towards 0 over all steps: (1 + cos(pi (i / T)^tilt)) / 2.

    Args:
        tilt: above 1 it stays near 1 for longer, below 1 it falls sooner.

    Raises:
        UserError: a tilt that is not above 0.

    Example:
        >>> [round(w, 2) for w in Cosine().weights(4)]
        [1.0, 0.85, 0.5, 0.15]

    Source: DiG-IN's code calls it "cosine", or "cosine_1.5" for a tilt of 1.5.
    """

    tilt: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tilt) and self.tilt > 0):
            raise UserError(f"tilt must be above 0, got {self.tilt!r}")

    def weights(self, steps: int) -> tuple[float, ...]:
        """One weight a step."""
        angles = (math.pi * (i / steps) ** self.tilt for i in range(steps))
        return tuple((1 + math.cos(angle)) / 2 for angle in angles)


Schedule = Threshold | Cosine | float
"""A number stands for Threshold(number)."""


def parse_schedule(text: str) -> Schedule:
    """A schedule from "0.3", "0.1-0.4" (from and until), "cosine" or "cosine:1.5" (its tilt).

    Raises:
        UserError: any other text, and a number outside its range.
    """
    number = r"\d*\.?\d+"
    cosine = rf"(?P<cosine>cosine)(:(?P<tilt>{number}))?"
    found = re.fullmatch(rf"{cosine}|((?P<start>{number})-)?(?P<until>{number})", text)
    if not found:
        raise UserError(
            f"schedule {text!r} is not understood: write a fraction of the steps like 0.3, two "
            "like 0.1-0.4, cosine, or cosine:TILT"
        )
    if found["cosine"]:
        return Cosine(float(found["tilt"] or 1))
    threshold = Threshold(float(found["until"]), float(found["start"] or 0))
    return threshold if found["start"] else threshold.until


def schedule_weights(schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The weight of each of ``steps`` steps, in [0, 1].

    Raises:
        UserError: a number that is no fraction.
    """
    if isinstance(schedule, int | float):
        schedule = Threshold(schedule)
    return schedule.weights(steps)


def steps_reached(schedules: Sequence[Schedule], steps: int) -> int:
    """How many steps, from the first, hold every one with a weight above 0."""
    weights = [schedule_weights(schedule, steps) for schedule in schedules]
    return max((i + 1 for row in weights for i, w in enumerate(row) if w), default=0)
