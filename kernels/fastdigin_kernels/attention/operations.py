"""The registered attention operations, and the autograd functions that call them.

The operations are opaque to compilers and transforms; each runs the backend module that its
argument ``impl`` names. The gradient is an autograd.Function with ``setup_context`` because
``torch.library.register_autograd`` fails under ``torch.func.vjp`` (torch 2.14).

A backend module ``fastdigin_kernels/attention/IMPL.py`` has, the last two if it is in INJECTING,

- ``unsupported(q, k, v) -> str | None``: why it cannot take these tensors;
- ``forward(q, k, v) -> (out, lse)``: lse is the natural logarithm of the sum of exp of the scaled
  scores (B,H,N), in fp32;
- ``backward(grad_out, q, k, v, out, lse, *, frozen_keys) -> (dq, dk, dv)``: with frozen_keys, dk
  and dv are None;
- ``injected_forward(q, k, v, source_q, source_k, mapped_v, weight) -> (out, lse, source_lse)``:
  weight * softmax(source_q source_k^T / sqrt d) mapped_v + (1 - weight) * softmax(q k^T / sqrt d) v
  with the weight (B,) in fp32 and mapped_v (B,H,S,d);
- ``injected_backward(grad_out, q, k, v, source_q, source_k, mapped_v, weight, lse, source_lse, *,
  frozen_keys) -> (dq, dk, dv, dmapped_v)``: with frozen_keys, all but dq are None.

Tensors may have any strides. Every result with N or T rows has the layout of the U-Net's own
tensors, (B,N,H,d) transposed, so that the heads are joined without a copy. Backends see no empty
tensors.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastdigin_kernels.common.autograd import differentiable, once_differentiable, require_frozen
from fastdigin_kernels.common.registry import register

BACKENDS = ("triton", "cpp")
"""Implementations that are backend modules."""

INJECTING = ("triton", "cpp")
"""Those with a kernel of their own for injected attention; others compute both parts and blend."""


class BackendError(RuntimeError):
    """An implementation that was asked for cannot run here, or not on these tensors."""


@cache
def backend(impl: str) -> ModuleType:
    """The backend module. BackendError, with the reason, if it cannot be imported."""
    assert impl in BACKENDS, f"impl must be one of {', '.join(BACKENDS)}, got {impl!r}"
    try:
        return import_module(f"fastdigin_kernels.attention.{impl}")
    except ImportError as error:
        raise BackendError(f"attention by {impl!r} cannot be used: {error}") from error


def attention(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, impl: str) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V by a backend, differentiable (once) -> (B,H,N,d)."""
    return _attention(q_bhnd, k_bhtd, v_bhtd, impl)


def injected_attention(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapped_v_bhsd: Tensor,
    weight_b: Tensor,
    impl: str,
) -> Tensor:
    """The blend of both attentions by a backend -> (B,H,N,d).

    Differentiable (once) in q, k, v and mapped_v. ValueError if another one requires a gradient.
    """
    require_frozen(
        "injected attention", source_q=source_q_bhnd, source_k=source_k_bhsd, weight=weight_b
    )
    return _injected_attention(
        q_bhnd, k_bhtd, v_bhtd, source_q_bhnd, source_k_bhsd, mapped_v_bhsd, weight_b, impl
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, impl):
        return _forward_operation(q, k, v, impl)

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
            return *_backward_operation(*args), None
        return _query_gradient_operation(*args), None, None, None


_attention = differentiable(_Attention, kept=1)


class _InjectedAttention(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, source_q, source_k, mapped_v, weight, impl):
        return _injected_forward_operation(q, k, v, source_q, source_k, mapped_v, weight, impl)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.impl = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, *_):
        args = (grad_out, *ctx.saved_tensors, ctx.impl)
        needs = ctx.needs_input_grad
        if needs[1] or needs[2] or needs[5]:
            dq, dk, dv, dmapped = _injected_backward_operation(*args)
            return dq, dk, dv, None, None, dmapped, None, None
        dq = _injected_query_gradient_operation(*args)
        return dq, None, None, None, None, None, None, None


_injected_attention = differentiable(_InjectedAttention, kept=2)


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


def _checked(impl: str, q: Tensor, k: Tensor, v: Tensor) -> ModuleType:
    module = backend(impl)
    reason = module.unsupported(q, k, v)
    if reason is not None:
        raise BackendError(
            f"attention by {impl!r} cannot take q {_describe(q)}, k {_describe(k)}: {reason}"
        )
    return module


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}".replace("torch.", "")


def _forward(q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    module = _checked(impl, q, k, v)
    return module.forward(q, k, v) if q.numel() else _fake_forward(q, k, v, impl)


def _fake_forward(q, k, v, impl):
    return like_unet(q), new_lse(q)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not q.numel():
        return like_unet(q), like_unet(k).zero_(), like_unet(v).zero_()
    return backend(impl).backward(grad, q, k, v, out, lse, frozen_keys=False)


def _fake_backward(grad, q, k, v, out, lse, impl):
    return like_unet(q), like_unet(k), like_unet(v)


def _query_gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, impl: str
) -> Tensor:
    if not q.numel():
        return like_unet(q)
    return backend(impl).backward(grad, q, k, v, out, lse, frozen_keys=True)[0]


def _fake_query_gradient(grad, q, k, v, out, lse, impl):
    return like_unet(q)


def _injected_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_q: Tensor,
    source_k: Tensor,
    mapped_v: Tensor,
    weight: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    module = _checked(impl, q, k, v)
    _checked(impl, source_q, source_k, mapped_v)
    args = (q, k, v, source_q, source_k, mapped_v, weight)
    return module.injected_forward(*args) if q.numel() else _fake_injected_forward(*args, impl)


def _fake_injected_forward(q, k, v, source_q, source_k, mapped_v, weight, impl):
    return like_unet(q), new_lse(q), new_lse(q)


def _injected_backward(
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
    if not q.numel():
        return like_unet(q), *(like_unet(x).zero_() for x in (k, v, mapped_v))
    args = (grad, q, k, v, source_q, source_k, mapped_v, weight, lse, source_lse)
    return backend(impl).injected_backward(*args, frozen_keys=False)


def _fake_injected_backward(
    grad, q, k, v, source_q, source_k, mapped_v, weight, lse, source_lse, impl
):
    return like_unet(q), like_unet(k), like_unet(v), like_unet(mapped_v)


def _injected_query_gradient(
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
) -> Tensor:
    if not q.numel():
        return like_unet(q)
    args = (grad, q, k, v, source_q, source_k, mapped_v, weight, lse, source_lse)
    return backend(impl).injected_backward(*args, frozen_keys=True)[0]


def _fake_injected_query_gradient(
    grad, q, k, v, source_q, source_k, mapped_v, weight, lse, source_lse, impl
):
    return like_unet(q)


_forward_operation = register("attention_forward", _forward, _fake_forward)
_backward_operation = register("attention_backward", _backward, _fake_backward)
_query_gradient_operation = register(
    "attention_query_gradient", _query_gradient, _fake_query_gradient
)
_injected_forward_operation = register(
    "injected_attention_forward", _injected_forward, _fake_injected_forward
)
_injected_backward_operation = register(
    "injected_attention_backward", _injected_backward, _fake_injected_backward
)
_injected_query_gradient_operation = register(
    "injected_attention_query_gradient", _injected_query_gradient, _fake_injected_query_gradient
)


def _products(count: int, q, k) -> int:
    """Two operations per multiply-add of ``count`` products between N x d and T x d."""
    batch, heads, image_tokens, size = q
    return 2 * count * batch * heads * image_tokens * k[2] * size


@register_flop_formula(torch.ops.fastdigin.attention_forward)
def _forward_flops(q, k, v, impl, *, out_shape=None) -> int:
    return _products(2, q, k)


@register_flop_formula(torch.ops.fastdigin.attention_backward)
def _backward_flops(grad, q, k, v, out, lse, impl, *, out_shape=None) -> int:
    return _products(5, q, k)


@register_flop_formula(torch.ops.fastdigin.attention_query_gradient)
def _query_gradient_flops(grad, q, k, v, out, lse, impl, *, out_shape=None) -> int:
    return _products(3, q, k)


@register_flop_formula(torch.ops.fastdigin.injected_attention_forward)
def _injected_forward_flops(q, k, v, source_q, source_k, mapped, w, impl, *, out_shape=None) -> int:
    return _products(2, q, k) + _products(2, q, source_k)


@register_flop_formula(torch.ops.fastdigin.injected_attention_backward)
def _injected_backward_flops(
    grad, q, k, v, source_q, source_k, mapped, w, lse, source_lse, impl, *, out_shape=None
) -> int:
    return _products(5, q, k) + _products(2, q, source_k)


@register_flop_formula(torch.ops.fastdigin.injected_attention_query_gradient)
def _injected_query_gradient_flops(
    grad, q, k, v, source_q, source_k, mapped, w, lse, source_lse, impl, *, out_shape=None
) -> int:
    return _products(3, q, k)
