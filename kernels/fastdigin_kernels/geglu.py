"""GEGLU, the gate of Stable Diffusion's feed-forward layers: keeps its input alone.

Autograd also keeps gelu(b), half as much again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastdigin_kernels._autograd import Function


def geglu(x: Tensor) -> Tensor:
    """a * gelu(b) of x = [a, b]: (..., 2d) -> (..., d), differentiable (once).

    gelu is the exact one, by the error function, as in diffusers. The same operations as PyTorch's,
    so the same bits. (Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.)
    """
    assert x.shape[-1] % 2 == 0, f"x must be (..., 2d), got {tuple(x.shape)}"
    return _GEGLU.apply(x) if torch.is_grad_enabled() else _GEGLU.forward(x)


class _GEGLU(Function):
    @staticmethod
    def forward(x):
        a, b = x.chunk(2, dim=-1)
        return F.gelu(b).mul_(a)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        a, b = x.chunk(2, dim=-1)
        grad_a = F.gelu(b).mul_(grad)
        grad_b = torch.ops.aten.gelu_backward(grad * a, b)
        return torch.cat([grad_a, grad_b], dim=-1)


def geglu_reference(x: Tensor) -> Tensor:
    """`geglu` by its definition."""
    a, b = x.chunk(2, dim=-1)
    return a * b * (1 + torch.erf(b / math.sqrt(2))) / 2
