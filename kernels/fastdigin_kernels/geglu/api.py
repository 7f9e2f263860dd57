"""GEGLU, the gate of Stable Diffusion's feed-forward layers: keeps its input alone.

Autograd also keeps gelu(b), half as much again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common import choice
from fastdigin_kernels.common.autograd import differentiable, once_differentiable
from fastdigin_kernels.common.registry import register

IMPLEMENTATIONS = ("auto", "torch", "cpp", "triton")
_TIMED_NUMBERS = 2**24


def geglu(x: Tensor, impl: str = "auto") -> Tensor:
    """a * gelu(b) of x = [a, b]: (..., 2d) -> (..., d), differentiable (once).

    gelu is the exact one, by the error function, as in diffusers. impl: "torch" has the same
    operations as PyTorch's, so the same bits; "cpp" and "triton" take one pass over memory; "auto"
    chooses (common/choice.py). Raises ValueError for another name, BackendError where the named
    one cannot run.
    (Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.)
    """
    assert x.ndim and x.shape[-1] % 2 == 0, f"x must be (..., 2d), got {tuple(x.shape)}"
    impl = choice.choose("geglu", impl, tuple(x.shape[1:] or x.shape), x)
    return _geglu()(x, impl)


@register("geglu")
def geglu_forward(x: Tensor, impl: str) -> Tensor:
    """y"""
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@register("geglu")
def geglu_backward(grad: Tensor, x: Tensor, impl: str) -> Tensor:
    """dx"""
    return x.new_empty(x.shape)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x, impl):
        if impl != "torch":
            return geglu_forward(x, impl)
        a, b = x.chunk(2, dim=-1)
        return F.gelu(b).mul_(a)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.impl = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if ctx.impl != "torch":
            return geglu_backward(grad, x, ctx.impl), None
        a, b = x.chunk(2, dim=-1)
        grad_a = F.gelu(b).mul_(grad)
        grad_b = torch.ops.aten.gelu_backward(grad * a, b)
        return torch.cat([grad_a, grad_b], dim=-1), None


_geglu = differentiable(_GEGLU, first_output=False)


def _to_time(
    shape: choice.Shape, batch: int | None, dtype: torch.dtype, device: torch.device
) -> choice.Run:
    batch = batch or choice.timed_batch(math.prod(shape), _TIMED_NUMBERS)
    x = torch.randn(batch, *shape, device=device, dtype=dtype, requires_grad=True)

    def run(impl: str) -> list[Tensor]:
        y = geglu(x, impl)
        return [y.detach(), *torch.autograd.grad(y, x, y.detach())]

    return run


# C++ was faster at all shapes of the embedded and the SD models (bench/results/kernels.json).
choice.declare("geglu", choice.Operation("torch", IMPLEMENTATIONS, _to_time, untimed=("cpu",)))
