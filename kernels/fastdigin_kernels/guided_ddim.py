"""The guided DDIM update, with the blending of the latents by a mask that precedes it.

    z'     = w z_src + (1 - w) z          (where blending is on)
    eps    = null + s (cond - null)
    z_prev = a z' + b eps
    x0     = c z' + d eps

(Song et al., DDIM, arXiv 2010.02502, equation 12; Ho and Salimans, classifier-free guidance,
arXiv 2207.12598.) The coefficients and s are numbers per sample, so samples of one batch may be at
different timesteps. The update is linear: its backward keeps none of z, cond and null.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin_kernels._autograd import differentiable, once_differentiable


def guided_ddim(
    z_bchw: Tensor,
    cond_bchw: Tensor,
    null_bchw: Tensor,
    coefficients_b4: Tensor,
    guidance_b: Tensor,
    weight_b1hw: Tensor | None = None,
    source_bchw: Tensor | None = None,
    impl: str = "torch",
) -> tuple[Tensor, Tensor]:
    """(z_prev, x0), both (B,C,H,W) in z's dtype; differentiable (once) in z, cond and null.

    cond, null: the network's outputs, of one dtype, which may be lower than z's. coefficients: a
    row (a, b, c, d) per sample. weight: in [0, 1], (B or 1, 1, H, W), given together with source.

    impl: "torch" runs on any device and is what a compiler fuses by itself; "triton" is one kernel
    each way. Raises ValueError for arguments that do not belong together or require a gradient
    that is not computed.
    """
    constants = (coefficients_b4, guidance_b, weight_b1hw, source_bchw)
    _check(z_bchw, cond_bchw, null_bchw, *constants)
    if impl == "torch":
        return _guided_ddim(z_bchw, cond_bchw, null_bchw, *constants)
    if impl != "triton":
        raise ValueError(f"impl must be 'torch' or 'triton', got {impl!r}")
    from fastdigin_kernels.guided_ddim_triton import guided_ddim as by_triton

    return by_triton(z_bchw, cond_bchw, null_bchw, *constants)


class _GuidedDDIM(torch.autograd.Function):
    @staticmethod
    def forward(z, cond, null, coefficients, guidance, weight, source):
        a, b, c, d = per_sample(coefficients.to(z.dtype))
        if weight is not None:
            z = torch.lerp(z, source, weight.to(z.dtype).expand_as(z))
        (s,) = per_sample(guidance[:, None].to(z.dtype))
        eps = torch.addcmul(null.to(z.dtype), s, cond.to(z.dtype) - null.to(z.dtype))
        return a * z + b * eps, c * z + d * eps

    @staticmethod
    def setup_context(ctx, inputs, output):
        keep_constants(ctx, inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z_prev, grad_x0):
        coefficients, guidance, *weight = ctx.saved_tensors
        dtype = grad_z_prev.dtype
        a, b, c, d = per_sample(coefficients.to(dtype))
        (s,) = per_sample(guidance[:, None].to(dtype))
        grad_eps = b * grad_z_prev + d * grad_x0
        grad_z = a * grad_z_prev + c * grad_x0
        if weight:
            grad_z = grad_z * (1 - weight[0].to(dtype))
        outputs = grad_z, (s * grad_eps).to(ctx.eps_dtype), ((1 - s) * grad_eps).to(ctx.eps_dtype)
        return *outputs, None, None, None, None


_guided_ddim = differentiable(_GuidedDDIM)


def keep_constants(ctx, inputs) -> None:
    """What either implementation keeps for the backward: nothing of z, cond and null."""
    _, cond, _, coefficients, guidance, weight, _ = inputs
    ctx.eps_dtype = cond.dtype
    ctx.save_for_backward(coefficients, guidance, *([] if weight is None else [weight]))


def per_sample(numbers_bn: Tensor) -> tuple[Tensor, ...]:
    """The columns of (B,n), each as (B,1,1,1)."""
    return numbers_bn[:, :, None, None, None].unbind(1)


def guided_ddim_reference(
    z_bchw: Tensor,
    cond_bchw: Tensor,
    null_bchw: Tensor,
    coefficients_b4: Tensor,
    guidance_b: Tensor,
    weight_b1hw: Tensor | None = None,
    source_bchw: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`guided_ddim` by its definition."""
    if weight_b1hw is not None:
        z_bchw = weight_b1hw * source_bchw + (1 - weight_b1hw) * z_bchw
    (s,) = per_sample(guidance_b[:, None])
    eps = null_bchw + s * (cond_bchw - null_bchw)
    a, b, c, d = per_sample(coefficients_b4)
    return a * z_bchw + b * eps, c * z_bchw + d * eps


def _check(z, cond, null, coefficients, guidance, weight, source) -> None:
    batch, shape = z.shape[0] if z.ndim else 0, tuple(z.shape)
    if z.ndim != 4 or not z.is_floating_point():
        raise ValueError(f"z must be (B,C,H,W) of floating-point numbers, got {shape} {z.dtype}")
    wanted = {
        "cond": (cond, shape),
        "null": (null, shape),
        "coefficients": (coefficients, (batch, 4)),
        "guidance": (guidance, (batch,)),
    }
    if (weight is None) != (source is None):
        raise ValueError("weight and source blend together: give both or neither")
    if weight is not None:
        wanted["source"] = (source, shape)
        wanted["weight"] = (weight, (batch if weight.shape[:1] != (1,) else 1, 1, *shape[2:]))
    for name, (tensor, size) in wanted.items():
        if tuple(tensor.shape) != size or tensor.device != z.device:
            raise ValueError(
                f"{name} must be {size} on {z.device}, got {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.requires_grad and name not in ("cond", "null"):
            raise ValueError(
                f"{name} requires a gradient, which guided_ddim does not compute: call "
                f"{name}.requires_grad_(False)"
            )
    if cond.dtype != null.dtype:
        raise ValueError(f"cond and null must have one dtype, got {cond.dtype} and {null.dtype}")
