"""The unrolled DDIM loop, differentiable at the price of T stored latents.

The forward runs without a graph and keeps the latent at the input of each step. The backward walks
the steps in reverse; each is recomputed with a graph and differentiated at once, so memory is T
latents plus one U-Net call, whatever T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdigin.models.attention import AttentionControl, InjectedAttention
from fastdigin.models.diffusion import LatentDiffusion


@dataclass(frozen=True)
class Step:
    """The constants of one step for a batch of B samples.

    timestep: (B,). coefficients: (B, 4), a row (a, b, c, d) each (models/ddim.py).
    guidance: (B,), or None where no sample uses a null branch.
    injected: source attention of the conditional branch, or None.
    blend: (w m, z_src) of shapes (B, 1, h, w) and (B, C, h, w), or None.
    """

    timestep: Tensor
    coefficients: Tensor
    guidance: Tensor | None
    injected: InjectedAttention | None = None
    blend: tuple[Tensor, Tensor] | None = None


def guided_step(
    model: LatentDiffusion, z_bchw: Tensor, cond_bld: Tensor, null_bld: Tensor | None, step: Step
) -> tuple[Tensor, Tensor]:
    """One blended, guided, injected DDIM step: (z_prev, x0), both (B, C, h, w)."""
    if step.blend is not None:
        weight, source = step.blend
        z_bchw = weight * source + (1 - weight) * z_bchw
    control = None if step.injected is None else AttentionControl(injected=step.injected)
    if step.guidance is None:
        output = model.predict(z_bchw, step.timestep, cond_bld, control)
    else:
        both = model.predict(
            torch.cat([z_bchw, z_bchw]),
            step.timestep.repeat(2),
            torch.cat([null_bld, cond_bld]),
            control,
        )
        null, cond = both.chunk(2)
        output = null + step.guidance[:, None, None, None] * (cond - null)
    a, b, c, d = step.coefficients[:, :, None, None, None].unbind(1)
    return a * z_bchw + b * output, c * z_bchw + d * output


@dataclass(frozen=True)
class Forward:
    """What the loop leaves behind: inputs (T of (B, C, h, w)), the last K x0, and the last z."""

    inputs: Sequence[Tensor]
    x0s: Sequence[Tensor]
    last: Tensor


@torch.no_grad()
def unrolled_forward(
    model: LatentDiffusion,
    z_bchw: Tensor,
    cond_btld: Tensor,
    null_btld: Tensor | None,
    steps: Sequence[Step],
    last_steps: int,
) -> Forward:
    """Runs the loop; cond and null are (B, T, L, D)."""
    inputs, x0s = [], []
    for i, step in enumerate(steps):
        inputs.append(z_bchw)
        z_bchw, x0 = guided_step(model, z_bchw, cond_btld[:, i], _at(null_btld, i), step)
        if i >= len(steps) - last_steps:
            x0s.append(x0)
    return Forward(inputs, x0s, z_bchw)


def unrolled_backward(
    model: LatentDiffusion,
    forward_inputs: Sequence[Tensor],
    cond_btld: Tensor,
    null_btld: Tensor | None,
    steps: Sequence[Step],
    grad_x0s: Sequence[Tensor],
    grad_last: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for (z_T, cond, null) from those of the last K x0 and of the last z."""
    grad_cond = torch.zeros_like(cond_btld)
    grad_null = None if null_btld is None else torch.zeros_like(null_btld)
    grad_z = grad_last
    first_loss_step = len(steps) - len(grad_x0s)
    for i in reversed(range(len(steps))):
        grad_x0 = grad_x0s[i - first_loss_step] if i >= first_loss_step else None
        grad_z, grad_cond[:, i], null_part = _step_vjp(
            model, forward_inputs[i], cond_btld[:, i], _at(null_btld, i), steps[i], grad_z, grad_x0
        )
        if grad_null is not None:
            grad_null[:, i] = null_part
    return grad_z, grad_cond, grad_null


def _step_vjp(model, z, cond, null, step: Step, grad_z_prev, grad_x0):
    """Recomputes one step and pulls its gradients back: the joint function of the backward."""
    variables = [x.detach().requires_grad_() for x in (z, cond, null) if x is not None]
    with torch.enable_grad():
        z_prev, x0 = guided_step(model, *variables, *([None] if null is None else []), step)
        pulled = [(o, g) for o, g in ((z_prev, grad_z_prev), (x0, grad_x0)) if g is not None]
        outputs, gradients = zip(*pulled, strict=True)
        found = torch.autograd.grad(outputs, variables, gradients)
    return found if null is not None else (*found, None)


def _at(text_btld: Tensor | None, i: int) -> Tensor | None:
    return None if text_btld is None else text_btld[:, i]


class UnrolledSampler(torch.autograd.Function):
    """``apply(model, steps, last_steps, z, cond, null)`` -> (last z, x0s (K, B, C, h, w))."""

    @staticmethod
    def forward(ctx, model, steps, last_steps, z, cond, null):
        run = unrolled_forward(model, z, cond, null, steps, last_steps)
        ctx.model, ctx.steps = model, steps
        ctx.save_for_backward(cond, null, *run.inputs)
        return run.last, torch.stack(list(run.x0s))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_last, grad_x0s):
        cond, null, *inputs = ctx.saved_tensors
        grads = unrolled_backward(
            ctx.model, inputs, cond, null, ctx.steps, list(grad_x0s), grad_last
        )
        return (None, None, None, *grads)
