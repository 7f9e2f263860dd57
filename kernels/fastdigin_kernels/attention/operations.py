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
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv"""
    return like_unet(q), like_unet(k), like_unet(v)


@register("attention")
def attention_query_gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, impl: str
) -> Tensor:
    """dq"""
    return like_unet(q)


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
def attention_injected_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_q: Tensor,
    source_k: Tensor,
    mapped_v: Tensor,
    weight: Tensor,
    lse: Tensor,
    source_lse: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dmapped_v"""
    return like_unet(q), like_unet(k), like_unet(v), like_unet(mapped_v)


@register("attention")
def attention_injected_query_gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, lse: Tensor, impl: str
) -> Tensor:
    """dq"""
    return like_unet(q)


class _Attention(torch.autograd.Function):
    forward = staticmethod(attention_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.impl = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, *_):
        args = (grad_out, *ctx.saved_tensors, ctx.impl)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            return *attention_backward(*args), None
        return attention_query_gradient(*args), None, None, None


class _InjectedAttention(torch.autograd.Function):
    forward = staticmethod(attention_injected_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.impl = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, *_):
        needs = ctx.needs_input_grad
        if needs[1] or needs[2] or needs[5]:
            args = (grad_out, *ctx.saved_tensors, ctx.impl)
            dq, dk, dv, dmapped = attention_injected_backward(*args)
            return dq, dk, dv, None, None, dmapped, None, None
        q, k, v, _, _, _, weight, lse, _ = ctx.saved_tensors
        dq = attention_injected_query_gradient(grad_out, q, k, v, weight, lse, ctx.impl)
        return dq, None, None, None, None, None, None, None


differentiable_attention = differentiable(_Attention, kept=1)
"""() -> a function of q, k, v and impl that gives out; differentiable (once)."""

differentiable_injected_attention = differentiable(_InjectedAttention, kept=2)
"""() -> the same of all that is injected; no gradient to source_q, source_k and weight."""


def _count_flops(name: str, k: int, products: int, source_k: int = 0, injected: int = 0) -> None:
    """Gives torch a formula: two operations per multiply-add of so many products.

    products: between N x d and T x d. injected: between N x d and S x d. k, source_k: the places
    of these tensors among the arguments, of which the first has the shape of q.
    """

    @register_flop_formula(getattr(torch.ops.fastdigin, f"attention_{name}"))
    def flops(*shapes, out_shape=None) -> int:
        batch, heads, image_tokens, size = shapes[0]
        tokens = products * shapes[k][2]
        if injected:
            tokens += injected * shapes[source_k][2]
        return 2 * batch * heads * image_tokens * size * tokens


_count_flops("forward", k=1, products=2)
_count_flops("backward", k=2, products=5)
_count_flops("query_gradient", k=2, products=3)
_count_flops("injected_forward", k=1, products=2, source_k=4, injected=2)
_count_flops("injected_backward", k=2, products=5, source_k=5, injected=2)
_count_flops("injected_query_gradient", k=2, products=3)
