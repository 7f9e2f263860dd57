"""Attention's operations as torch sees them, and the autograd functions that call them.

A backend module ``attention/IMPL.py`` has a function for each operation, named as it is without
"attention_" and with the same arguments but ``impl``, and

- ``unsupported(device, dtype, shape) -> str | None``: why it cannot serve such tensors; the last
  number of the shape is the head size.

Of the tensors, lse is the natural logarithm of the sum of exp of the scaled scores (B,H,N), and
the weight (B,) is in fp32, as lse is. What is injected is weight * softmax(source_q source_k^T /
sqrt d) mapped_v + (1 - weight) * softmax(q k^T / sqrt d) v with mapped_v (B,H,S,d). Where only the
queries need a gradient, as with frozen text, backends are asked for nothing else.

Inputs may have any strides. Every result with N or T rows has the layout of the U-Net's own
tensors, (B,N,H,d) transposed, so that the heads are joined without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import List  # noqa: UP035

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastdigin_kernels.common.autograd import differentiable, once_differentiable
from fastdigin_kernels.common.registry import register


def like_unet(x_bhnd: Tensor) -> Tensor:
    """An uninitialised tensor of this shape and dtype in the layout that every result has."""
    batch, heads, tokens, size = x_bhnd.shape
    return x_bhnd.new_empty_strided(
        (batch, heads, tokens, size), (tokens * heads * size, size, heads * size, 1)
    )


def new_lse(q_bhnd: Tensor) -> Tensor:
    """An uninitialised fp32 tensor (B,H,N)."""
    batch, heads, tokens, _ = q_bhnd.shape
    return q_bhnd.new_empty((batch, heads, tokens), dtype=torch.float32)


@register("attention")
def attention_forward(q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """out, lse"""
    return like_unet(q), new_lse(q)


@register("attention")
def attention_injected_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_q: Tensor,
    source_k: Tensor,
    mapped_v: Tensor,
    weight: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse, lse of the source's attention"""
    return like_unet(q), new_lse(q), new_lse(q)


@register("attention")
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    lse: Tensor,
    factor: Tensor | None,
    wanted: str,
    impl: str,
) -> List[Tensor]:  # noqa: UP006 - torch 2.6 reads no other
    """The gradients of ``wanted``, which is "q", "qkv" or "v"; times a factor per sample.

    out: of factor 1; None where it was not kept.
    """
    return [like_unet(x) for name, x in {"q": q, "k": k, "v": v}.items() if name in wanted]


class _Attention(torch.autograd.Function):
    forward = staticmethod(attention_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.impl = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        wanted = "qkv" if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else "q"
        found = attention_backward(grad, *ctx.saved_tensors, None, wanted, ctx.impl)
        return *found, *[None] * (4 - len(found))


class _InjectedAttention(torch.autograd.Function):
    """Attention is linear in the incoming gradient: blending is a factor on each part's results."""

    forward = staticmethod(attention_injected_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.impl = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        *own, source_q, source_k, mapped_v, weight, lse, source_lse = ctx.saved_tensors
        values_wanted = any(ctx.needs_input_grad[i] for i in (1, 2, 5))
        wanted = "qkv" if values_wanted else "q"
        found = attention_backward(grad, *own, None, lse, 1 - weight, wanted, ctx.impl)
        if not values_wanted:
            return found[0], *[None] * 7
        source = (source_q, source_k, mapped_v, None, source_lse, weight)
        (dmapped_v,) = attention_backward(grad, *source, "v", ctx.impl)
        return *found, None, None, dmapped_v, None, None


differentiable_attention = differentiable(_Attention)
"""() -> a function of q, k, v and impl that gives out; differentiable (once)."""

differentiable_injected_attention = differentiable(_InjectedAttention)
"""() -> the same of all that is injected; no gradient to source_q, source_k and weight."""


_PRODUCTS = {"q": 3, "qkv": 5, "v": 2}  # of a backward, between N x d and T x d


def _product_flops(q: Sequence[int], k: Sequence[int]) -> int:
    batch, heads, queries, size = q
    return 2 * batch * heads * queries * size * k[2]


@register_flop_formula(torch.ops.fastdigin.attention_forward)
def _forward_flops(q, k, *_, **__) -> int:
    return 2 * _product_flops(q, k)


@register_flop_formula(torch.ops.fastdigin.attention_injected_forward)
def _injected_forward_flops(q, k, v, source_q, source_k, *_, **__) -> int:
    return 2 * (_product_flops(q, k) + _product_flops(q, source_k))


@register_flop_formula(torch.ops.fastdigin.attention_backward)
def _backward_flops(grad, q, k, v, out, lse, factor, wanted, *_, **__) -> int:
    return _PRODUCTS[wanted] * _product_flops(q, k)
