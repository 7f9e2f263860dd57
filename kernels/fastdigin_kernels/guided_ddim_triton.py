"""The guided DDIM update as one Triton kernel each way (what it computes: guided_ddim.py).

Every latent, network output and result is read or written once; the numbers per sample are read by
each program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdigin_kernels import _triton_launch as launch
from fastdigin_kernels._autograd import differentiable, once_differentiable
from fastdigin_kernels.guided_ddim import keep_constants

BLOCK, WARPS = 1024, 4


class _GuidedDDIM(torch.autograd.Function):
    @staticmethod
    def forward(z, cond, null, coefficients, guidance, weight, source):
        return forward(z, cond, null, coefficients, guidance, weight, source)

    @staticmethod
    def setup_context(ctx, inputs, output):
        keep_constants(ctx, inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z_prev, grad_x0):
        coefficients, guidance, *weight = ctx.saved_tensors
        grads = backward(
            grad_z_prev, grad_x0, coefficients, guidance, weight[0] if weight else None,
            ctx.eps_dtype,
        )  # fmt: skip
        return *grads, None, None, None, None


guided_ddim = differentiable(_GuidedDDIM)
"""`guided_ddim.guided_ddim`, which checks the arguments."""


def forward(
    z_bchw: Tensor,
    cond_bchw: Tensor,
    null_bchw: Tensor,
    coefficients_b4: Tensor,
    guidance_b: Tensor,
    weight_b1hw: Tensor | None,
    source_bchw: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(z_prev, x0), contiguous."""
    launch.require("guided DDIM", z_bchw)
    launch.require("guided DDIM", cond_bchw)
    tensors = [x.contiguous() for x in (z_bchw, cond_bchw, null_bchw)]
    if source_bchw is not None:
        source_bchw = source_bchw.contiguous()
    z_prev, x0 = (torch.empty_like(tensors[0]) for _ in range(2))
    _launch(
        forward_kernel, z_prev, weight_b1hw,
        (*tensors, source_bchw, z_prev, x0, *_numbers(coefficients_b4, guidance_b)),
    )  # fmt: skip
    return z_prev, x0


def backward(
    grad_z_prev: Tensor,
    grad_x0: Tensor,
    coefficients_b4: Tensor,
    guidance_b: Tensor,
    weight_b1hw: Tensor | None,
    eps_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to z, cond and null; the last two in ``eps_dtype``."""
    grads = [x.contiguous() for x in (grad_z_prev, grad_x0)]
    dz = torch.empty_like(grads[0])
    dcond, dnull = (torch.empty_like(dz, dtype=eps_dtype) for _ in range(2))
    _launch(
        backward_kernel, dz, weight_b1hw,
        (*grads, dz, dcond, dnull, *_numbers(coefficients_b4, guidance_b)),
    )  # fmt: skip
    return dz, dcond, dnull


@triton.jit
def _place(size, BLOCK: tl.constexpr):
    """The program's sample, where its numbers lie in the tensors (64 bits) and in the sample."""
    blocks = tl.cdiv(size, BLOCK)
    sample = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return sample, sample.to(tl.int64) * size + i, i, i < size


@triton.jit
def _numbers_of(coefficients_ptr, guidance_ptr, sample):
    a = tl.load(coefficients_ptr + 4 * sample)
    b = tl.load(coefficients_ptr + 4 * sample + 1)
    c = tl.load(coefficients_ptr + 4 * sample + 2)
    d = tl.load(coefficients_ptr + 4 * sample + 3)
    return a, b, c, d, tl.load(guidance_ptr + sample)


@triton.jit(do_not_specialize=["weight_stride"])
def forward_kernel(
    z_ptr, cond_ptr, null_ptr, source_ptr, z_prev_ptr, x0_ptr, coefficients_ptr, guidance_ptr,
    weight_ptr, weight_stride, size, pixels, BLOCK: tl.constexpr, BLEND: tl.constexpr,
):  # fmt: skip
    sample, offsets, i, mask = _place(size, BLOCK)
    a, b, c, d, guidance = _numbers_of(coefficients_ptr, guidance_ptr, sample)
    z = tl.load(z_ptr + offsets, mask=mask).to(tl.float32)
    if BLEND:
        weight = tl.load(weight_ptr + sample * weight_stride + i % pixels, mask=mask)
        source = tl.load(source_ptr + offsets, mask=mask).to(tl.float32)
        z = weight * source + (1 - weight) * z
    cond = tl.load(cond_ptr + offsets, mask=mask).to(tl.float32)
    null = tl.load(null_ptr + offsets, mask=mask).to(tl.float32)
    eps = null + guidance * (cond - null)
    tl.store(z_prev_ptr + offsets, (a * z + b * eps).to(z_prev_ptr.dtype.element_ty), mask=mask)
    tl.store(x0_ptr + offsets, (c * z + d * eps).to(x0_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["weight_stride"])
def backward_kernel(
    grad_z_prev_ptr, grad_x0_ptr, dz_ptr, dcond_ptr, dnull_ptr, coefficients_ptr, guidance_ptr,
    weight_ptr, weight_stride, size, pixels, BLOCK: tl.constexpr, BLEND: tl.constexpr,
):  # fmt: skip
    sample, offsets, i, mask = _place(size, BLOCK)
    a, b, c, d, guidance = _numbers_of(coefficients_ptr, guidance_ptr, sample)
    grad_z_prev = tl.load(grad_z_prev_ptr + offsets, mask=mask).to(tl.float32)
    grad_x0 = tl.load(grad_x0_ptr + offsets, mask=mask).to(tl.float32)
    dz = a * grad_z_prev + c * grad_x0
    if BLEND:
        dz *= 1 - tl.load(weight_ptr + sample * weight_stride + i % pixels, mask=mask)
    deps = b * grad_z_prev + d * grad_x0
    dcond = guidance * deps
    dnull = (1 - guidance) * deps
    tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(dcond_ptr + offsets, dcond.to(dcond_ptr.dtype.element_ty), mask=mask)
    tl.store(dnull_ptr + offsets, dnull.to(dnull_ptr.dtype.element_ty), mask=mask)


def _numbers(coefficients_b4: Tensor, guidance_b: Tensor) -> tuple[Tensor, Tensor]:
    return coefficients_b4.float().contiguous(), guidance_b.float().contiguous()


def _launch(kernel, like_z: Tensor, weight_b1hw: Tensor | None, arguments: tuple) -> None:
    batch, size = like_z.shape[0], like_z[:1].numel()
    pixels = like_z.shape[2] * like_z.shape[3]
    if not like_z.numel():
        return
    stride = 0
    if weight_b1hw is not None:
        weight_b1hw = weight_b1hw.float().contiguous()
        stride = 0 if len(weight_b1hw) == 1 else pixels
    with launch.on(like_z):
        kernel[(batch * triton.cdiv(size, BLOCK),)](
            *arguments, weight_b1hw, stride, size, pixels,
            BLOCK=BLOCK, BLEND=weight_b1hw is not None, num_warps=WARPS,
        )  # fmt: skip
