"""What a task's settings are where nobody says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastdigin.models.diffusion import LatentDiffusion


def fitted(settings: Any, model: LatentDiffusion) -> Any:
    """A task's settings with the steps and the guidance that the model is usually sampled with."""
    usual = {"steps": model.usual_steps, "guidance_scale": model.usual_guidance_scale}
    return replace(settings, optimisation=replace(settings.optimisation, **usual))
