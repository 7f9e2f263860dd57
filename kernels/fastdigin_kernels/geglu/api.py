"""GEGLU, the gate of Stable Diffusion's feed-forward layers: keeps its input alone.

Autograd also keeps gelu(b), half as much again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common import fused
from fastdigin_kernels.common.autograd import differentiable, once_differentiable
from fastdigin_kernels.common.registry import register


def geglu(x: Tensor, impl: str = "auto") -> Tensor:
    """a * gelu(b) of x = [a, b]: (..., 2d) -> (..., d), differentiable (once).

    gelu is the exact one, by the error function, as in diffusers. impl (fused.py): "torch" has the
    same operations as PyTorch's, so the same bits; "cpp" and "triton" take one pass over memory.
    (Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.)
    """
    assert x.shape[-1] % 2 == 0, f"x must be (..., 2d), got {tuple(x.shape)}"
    impl = fused.choose(impl, x)
    return _geglu(x, impl)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x, impl):
        if impl != "torch":
            return _forward_operation(x, impl)
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
            return _backward_operation(grad, x, ctx.impl), None
        a, b = x.chunk(2, dim=-1)
        grad_a = F.gelu(b).mul_(grad)
        grad_b = torch.ops.aten.gelu_backward(grad * a, b)
        return torch.cat([grad_a, grad_b], dim=-1), None


_geglu = differentiable(_GEGLU)


def _forward(x: Tensor, impl: str) -> Tensor:
    return fused.checked("geglu", impl, x).forward(x)


def _fake_forward(x, impl):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _backward(grad: Tensor, x: Tensor, impl: str) -> Tensor:
    return fused.checked("geglu", impl, x).backward(grad, x)


def _fake_backward(grad, x, impl):
    return x.new_empty(x.shape)


_forward_operation = register("geglu_forward", _forward, _fake_forward)
_backward_operation = register("geglu_backward", _backward, _fake_backward)


def geglu_reference(x: Tensor) -> Tensor:
    """`geglu` by its definition."""
    a, b = x.chunk(2, dim=-1)
    return a * b * (1 + torch.erf(b / math.sqrt(2))) / 2
