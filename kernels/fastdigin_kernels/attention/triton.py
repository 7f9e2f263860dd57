"""Attention by Triton kernels, forward and backward: what the dispatcher calls.

Shapes: B samples, H heads, N queries, T keys, S source keys, d head size. Tensors may have any
strides (the U-Net hands in transposed views); one whose last dimension is not contiguous is copied.
Results lie as (B,N,H,d) in memory, so that joining the heads is free. Which tile a kernel uses
depends on N, T and d alone, never on B: a sample gets the same bits beside any others.

The kernels: triton_forward.py, triton_dq.py and triton_dkv.py, each beside its reference.
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

from fastdigin_kernels.attention.tiles import (
    FUSED_INJECTION,
    MAX_HEAD_SIZE,
    SHORT_KEYS,
    Tile,
    tiles_for,
)

_HAS_TRITON = importlib.util.find_spec("triton") is not None
if _HAS_TRITON:
    from fastdigin_kernels.attention.triton_dkv import dkv_constants, dkv_kernel
    from fastdigin_kernels.attention.triton_dq import dq_constants, dq_kernel
    from fastdigin_kernels.attention.triton_forward import forward_constants, forward_kernel
    from fastdigin_kernels.common import triton_launch as launch

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ROWS_PER_SPLIT = 1024  # a multiple of every tile's rows


def unsupported(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> str | None:
    """Why these kernels cannot take these tensors, or None if they can."""
    tensors = {"q": q_bhnd, "k": k_bhtd, "v": v_bhtd}
    for name, x in tensors.items():
        if x.ndim != 4:
            return f"{name} must have 4 dimensions (B,H,tokens,d), it is {tuple(x.shape)}"
        if x.dtype != q_bhnd.dtype or x.device != q_bhnd.device:
            return f"q, k and v must share dtype and device, {name} is {x.dtype} on {x.device}"
    batch, heads, _, size = q_bhnd.shape
    if k_bhtd.shape != v_bhtd.shape or (*k_bhtd.shape[:2], k_bhtd.shape[3]) != (batch, heads, size):
        return (
            f"k and v must be ({batch},{heads},T,{size}) as q, they are {tuple(k_bhtd.shape)} and "
            f"{tuple(v_bhtd.shape)}"
        )
    if q_bhnd.dtype not in _DTYPES:
        return f"it takes float16, bfloat16 and float32, not {q_bhnd.dtype}"
    if not 1 <= size <= MAX_HEAD_SIZE:
        return f"it takes head sizes from 1 to {MAX_HEAD_SIZE}, not {size}"
    if k_bhtd.shape[2] == 0:
        return "it needs at least one key"
    if not _HAS_TRITON:
        return "triton is not installed"
    return launch.unsupported_device(q_bhnd.device, q_bhnd.dtype)


def forward(
    q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V (B,H,N,d), and the log-sum-exp of the scaled scores (B,H,N), fp32.

    tile: overrides the tuner's choice. ValueError where `unsupported` has a reason.
    """
    out, lse, _ = _forward(q_bhnd, k_bhtd, v_bhtd, None, tile)
    return out, lse


def injected_forward(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapped_v_bhsd: Tensor,
    weight_b: Tensor,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """w attention(Qs, Ks, Vm) + (1 - w) attention(Q, K, V) -> (out, lse, source_lse).

    Both parts in one pass over the queries, up to a head size of 80; beyond, the registers do not
    hold both parts' outputs. Where the weight (B,) is 0, the output is `forward`'s.
    """
    source = (source_q_bhnd, source_k_bhsd, mapped_v_bhsd)
    _check_source(q_bhnd, *source, weight_b)
    if q_bhnd.shape[-1] <= FUSED_INJECTION:
        return _forward(q_bhnd, k_bhtd, v_bhtd, (*source, weight_b.float()), tile)
    own, lse = forward(q_bhnd, k_bhtd, v_bhtd, tile=tile)
    injected, source_lse = forward(*source, tile=tile)
    weight_b111 = weight_b.to(own.dtype).view(-1, 1, 1, 1)
    return torch.lerp(own, injected, weight_b111), lse, source_lse


def backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor,
    lse_bhn: Tensor,
    *,
    frozen_keys: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dQ, dK and dV; with frozen_keys (the text is frozen) only dQ is computed, the others None."""
    dq, delta = _query_gradient(
        grad_bhnd, q_bhnd, k_bhtd, v_bhtd, out_bhnd, lse_bhn, None, not frozen_keys, tile
    )
    if frozen_keys:
        return dq, None, None
    dk, dv = _key_gradients(grad_bhnd, q_bhnd, k_bhtd, v_bhtd, lse_bhn, delta, None, tile)
    return dq, dk, dv


def injected_backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapped_v_bhsd: Tensor,
    weight_b: Tensor,
    lse_bhn: Tensor,
    source_lse_bhn: Tensor,
    *,
    frozen_keys: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dQ, dK, dV and the gradient of the mapped values; none to the source's queries and keys.

    Attention is linear in the incoming gradient, so the blend is a factor per sample on the
    results: 1 - w, and w for the mapped values.
    """
    own_factor = 1 - weight_b.float()
    own = (grad_bhnd, q_bhnd, k_bhtd, v_bhtd)
    dq, delta = _query_gradient(*own, None, lse_bhn, own_factor, not frozen_keys, tile)
    if frozen_keys:
        return dq, None, None, None
    dk, dv = _key_gradients(*own, lse_bhn, delta, own_factor, tile)
    source = (grad_bhnd, source_q_bhnd, source_k_bhsd, mapped_v_bhsd)
    _, dmapped_v = _key_gradients(*source, source_lse_bhn, None, weight_b.float(), tile)
    return dq, dk, dv, dmapped_v


def _forward(q, k, v, source, tile):
    _check(q, k, v)
    source_q, source_k, mapped_v, weight_b = source or (q, k, v, None)
    tensors = [launch.last_dim_contiguous(x) for x in (q, k, v)]
    source_tensors = [launch.last_dim_contiguous(x) for x in (source_q, source_k, mapped_v)]
    batch, heads, queries, size = q.shape
    out = _like_unet(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    source_lse = lse if source is None else torch.empty_like(lse)
    align = launch.alignment(*tensors, out, *source_tensors)

    def run(tile: Tile, injected: bool = source is not None) -> None:
        source_keys = source_k.shape[2] if injected else None
        constants = forward_constants(size, queries, k.shape[2], source_keys, align, tile)
        forward_kernel[(-(-queries // constants["ROWS"]) * batch * heads,)](
            *tensors, out, lse, *launch.strides(align, *tensors, out),
            *source_tensors, weight_b if injected else None, source_lse,
            *launch.strides(align, *source_tensors),
            heads, queries, k.shape[2], source_k.shape[2], math.log2(math.e) / math.sqrt(size),
            **constants, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    if q.numel():
        with launch.on(q):
            # Tuned without injection: a sample that injects nothing keeps its bits.
            run(tile or _tuned("forward", q, k, lambda tile: run(tile, injected=False)))
    return out, lse, source_lse


def _query_gradient(grad, q, k, v, out, lse, factor_b, store_delta, tile):
    """dQ, times a factor per sample if one is given, and delta (B,H,N), unscaled."""
    short = k.shape[2] <= SHORT_KEYS
    if out is None and not short:
        out, _ = forward(q, k, v)  # injection saves no output of its own part; texts are short
    _check(q, k, v)
    _check_grad(grad, q)
    tensors = [launch.last_dim_contiguous(x) for x in (q, k, v, q if short else out, grad)]
    batch, heads, queries, size = q.shape
    dq, delta = _like_unet(q), torch.empty_like(lse)
    align = launch.alignment(*tensors, dq)

    def run(tile: Tile) -> None:
        scaled = factor_b is not None
        constants = dq_constants(size, queries, k.shape[2], align, store_delta, scaled, tile)
        dq_kernel[(-(-queries // constants["ROWS"]) * batch * heads,)](
            *tensors, dq, lse, delta, factor_b, *launch.strides(align, *tensors, dq),
            heads, queries, k.shape[2], 1 / math.sqrt(size),
            **constants, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    if q.numel():
        with launch.on(q):
            run(tile or _tuned("dq", q, k, run))
    return dq, delta


def _key_gradients(grad, q, k, v, lse, delta, factor_b, tile):
    """dK and dV; without delta, dV alone."""
    _check(q, k, v)
    _check_grad(grad, q)
    tensors = [launch.last_dim_contiguous(x) for x in (q, k, v, grad)]
    batch, heads, queries, size = q.shape
    keys, v_only = k.shape[2], delta is None
    splits = -(-queries // _ROWS_PER_SPLIT) if keys <= SHORT_KEYS else 1
    if splits > 1:
        # Partial sums of the splits, in fp32, to be added up in order.
        dk, dv = (q.new_empty(splits, *k.shape, dtype=torch.float32) for _ in range(2))
    else:
        dk, dv = _like_unet(k)[None], _like_unet(k)[None]
    if v_only:
        dk = dv
    part = dk.stride(0) if splits > 1 else 0
    align = math.gcd(launch.alignment(*tensors, dk[0], dv[0]), part)

    def run(tile: Tile) -> None:
        constants = dkv_constants(size, queries, keys, align, factor_b is not None, v_only, tile)
        tiles = keys // constants["COLS"] + (constants["TAIL"] > 0)
        dkv_kernel[(tiles * batch * heads, splits)](
            *tensors, dk, dv, lse, delta, factor_b, *launch.strides(align, *tensors, dk[0], dv[0]),
            heads, queries, keys, 1 / math.sqrt(size), _ROWS_PER_SPLIT if splits > 1 else queries,
            part // align, **constants, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    if q.numel():
        with launch.on(q):
            run(tile or _tuned("dkv", q, k, run))
    else:
        dk, dv = dk.zero_(), dv.zero_()
    if splits > 1:
        return None if v_only else _like_unet(k).copy_(dk.sum(0)), _like_unet(k).copy_(dv.sum(0))
    return None if v_only else dk[0], dv[0]


def _tuned(kernel: str, q: Tensor, k: Tensor, run) -> Tile:
    queries, keys, size = q.shape[2], k.shape[2], q.shape[3]
    family = launch.family(q.device)
    candidates = tiles_for(kernel, size, keys, q.element_size(), family)
    return launch.fastest((kernel, queries, keys, size, q.dtype), candidates, run, q.device)


def _like_unet(x_bhnd: Tensor) -> Tensor:
    """An uninitialised tensor of this shape that lies as (B,N,H,d) in memory."""
    batch, heads, tokens, size = x_bhnd.shape
    return x_bhnd.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    reason = unsupported(q, k, v)
    if reason is not None:
        raise ValueError(f"attention by Triton kernels cannot take these tensors: {reason}")


def _check_source(q, source_q, source_k, mapped_v, weight_b) -> None:
    _check(source_q, source_k, mapped_v)
    if source_q.shape != q.shape or weight_b.shape != q.shape[:1]:
        raise ValueError(
            f"source_q must be {tuple(q.shape)} as q, and weight ({q.shape[0]},), they are "
            f"{tuple(source_q.shape)} and {tuple(weight_b.shape)}"
        )


def _check_grad(grad: Tensor, q: Tensor) -> None:
    if grad.shape != q.shape or grad.dtype != q.dtype or grad.device != q.device:
        raise ValueError(
            f"the gradient must be {tuple(q.shape)} {q.dtype} on {q.device} as q, it is "
            f"{tuple(grad.shape)} {grad.dtype} on {grad.device}"
        )
