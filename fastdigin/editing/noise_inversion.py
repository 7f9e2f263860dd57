"""Inversion for solvers that add noise (LCM, SDXL-Turbo): find the noise that makes the image.

Edit-friendly inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140, section 3; for
few-step models TurboEdit, Deutch et al. 2024): every step's latent is drawn on its own from the
noised image, and the noise between two of them is whatever the model's step lacks. The last step
adds none, so the reconstruction ends with the model's own prediction from the last latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin.engine.sampler import Step, StepFunctions

_SEED = 0  # the same noise for every image: an inversion depends on nothing beside it


@torch.no_grad()
def noise_inversion(
    functions: StepFunctions,
    encoded_bchw: Tensor,
    cond_bld: Tensor,
    null_bld: Tensor | None,
    guidance_b: Tensor | None,
    vector: Tensor | None,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """A trajectory that ends near clean latents, and the noise that leads along it.

    Args:
        encoded_bchw: the clean latents.
        cond_bld: the prompt's embeddings.
        null_bld, guidance_b, vector: as in ``Step``; the first two None without a null branch.
        steps: T.

    Returns:
        (trajectory (B, T + 1, C, h, w), noise (B, T, C, h, w)); the noise is what ``Job.noise``
        wants, unscaled.
    """
    table, batch = functions.model.ddim_table(steps), len(encoded_bchw)
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn(steps, *encoded_bchw.shape[1:], generator=generator).to(encoded_bchw)
    signal, noise = table.levels.to(encoded_bchw).unbind(1)
    path = [s * encoded_bchw + n * eps for s, n, eps in zip(signal, noise, drawn, strict=True)]
    coefficients, added = table.step.to(encoded_bchw), table.noise.to(encoded_bchw)
    found = []
    for i in range(steps):
        step = Step(
            timestep=table.timesteps[i].to(encoded_bchw.device).expand(batch),
            coefficients=coefficients[i].expand(batch, 4),
            guidance=guidance_b,
            vector=vector,
        )
        z_prev, _ = functions.forward(path[i], cond_bld, null_bld, step)
        if i == steps - 1:
            path.append(z_prev)
            found.append(torch.zeros_like(z_prev))
        else:
            found.append((path[i + 1] - z_prev) / added[i])
    return torch.stack(path, dim=1), torch.stack(found, dim=1)
