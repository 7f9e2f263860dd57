"""How work that takes minutes tells of itself, from its first pass of the U-Net on.

Work is counted in passes of one image's branch: a forward is one pass, its backward another.
"""

from collections.abc import Callable
from typing import Any

from fastdigin.engine.sampler import Step, StepFunctions, StepGraph
from fastdigin.models.diffusion import LatentDiffusion

EVALUATION = 1 / 3
"""The work of an evaluation, a forward, in iterations, which also recompute and go back."""


def iteration_passes(model: LatentDiffusion, settings: Any) -> int:
    """Of an exact iteration of one job. settings: whatever has ``steps`` and ``guidance_scale``."""
    return 3 * settings.steps * (2 if model.has_null_branch(settings.guidance_scale) else 1)


class Told:
    """Tells ``on_progress`` of ``whole``, a share at a time and in sum exactly.

    passes: how many the work will probably take; what is left at its end is told then.
    """

    def __init__(self, on_progress: Callable[[float], None], whole: float, passes: float):
        self._on_progress, self._left, self._each = on_progress, whole, whole / max(passes, 1)

    def add(self, passes: float) -> None:
        """So many passes are done."""
        share = min(passes * self._each, self._left)
        if share > 0:
            self._left -= share
            self._on_progress(share)

    def end(self) -> None:
        """All of it is done."""
        if self._left > 0:
            self._on_progress(self._left)
        self._left = 0.0


class ToldSteps:
    """``StepFunctions`` that call ``on_passes`` with the passes of each row that were just made."""

    def __init__(self, functions: StepFunctions, on_passes: Callable[[int], None]):
        self.model, self._functions, self._on_passes = functions.model, functions, on_passes

    def forward(self, z, cond, null, step: Step) -> tuple:
        """As the functions' own, like all others."""
        found = self._functions.forward(z, cond, null, step)
        self._on_passes(1 if null is None else 2)
        return found

    def forward_with_graph(self, z, cond, null, step: Step) -> StepGraph:
        graph = self._functions.forward_with_graph(z, cond, null, step)
        self._on_passes(1 if null is None else 2)
        return graph

    def vjp(self, graph: StepGraph, grad_z_prev, grad_x0) -> tuple:
        found = self._functions.vjp(graph, grad_z_prev, grad_x0)
        self._on_passes(len(graph.variables) - 1)  # but the latents
        return found

    def joint(self, z, cond, null, step: Step, grad_z_prev, grad_x0) -> tuple:
        found = self._functions.joint(z, cond, null, step, grad_z_prev, grad_x0)
        self._on_passes(2 if null is None else 4)
        return found
