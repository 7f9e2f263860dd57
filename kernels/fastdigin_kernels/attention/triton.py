"""Attention by Triton kernels: a backend module as operations.py describes them.

Shapes: B samples, H heads, N queries, T keys, S source keys, d head size. A tensor whose last
dimension is not contiguous is copied. Which tile a kernel uses depends on N, T and d alone, never
on B: a sample gets the same bits beside any others. The kernels are in triton_forward.py,
triton_dq.py and triton_dkv.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdigin_kernels.attention.operations import like_unet, new_lse
from fastdigin_kernels.attention.tiles import (
    FUSED_INJECTION,
    MAX_HEAD_SIZE,
    SHORT_KEYS,
    Tile,
    tiles_for,
)
from fastdigin_kernels.attention.triton_dkv import dkv_constants, dkv_kernel
from fastdigin_kernels.attention.triton_dq import dq_constants, dq_kernel
from fastdigin_kernels.attention.triton_forward import forward_constants, forward_kernel
from fastdigin_kernels.common import triton_launch as launch

_ROWS_PER_SPLIT = 1024  # a multiple of every tile's rows


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why these kernels cannot take such tensors, or None if they can."""
    if not 1 <= shape[-1] <= MAX_HEAD_SIZE:
        return f"it takes head sizes from 1 to {MAX_HEAD_SIZE}, not {shape[-1]}"
    return launch.unsupported(device, dtype, shape)


def forward(
    q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """out (B,H,N,d) and lse (B,H,N). tile: overrides the tuner's choice."""
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
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, source lse): the blend by weight_b of the source's attention and the own.

    Both parts in one pass over the queries, up to a head size of 80; beyond, the registers do not
    hold both parts' outputs. Where the weight (B,) is 0, the output is `forward`'s.
    """
    source = (source_q_bhnd, source_k_bhsd, mapped_v_bhsd)
    if q_bhnd.shape[-1] <= FUSED_INJECTION:
        return _forward(q_bhnd, k_bhtd, v_bhtd, (*source, weight_b), None)
    own, lse = forward(q_bhnd, k_bhtd, v_bhtd)
    injected, source_lse = forward(*source)
    weight_b111 = weight_b.to(own.dtype).view(-1, 1, 1, 1)
    return torch.lerp(own, injected, weight_b111), lse, source_lse


def backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor | None,
    lse_bhn: Tensor,
    factor_b: Tensor | None,
    wanted: str,
    *,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Those of dq, dk and dv that are wanted."""
    own = (grad_bhnd, q_bhnd, k_bhtd, v_bhtd)
    if wanted == "v":
        return [_key_gradients(*own, lse_bhn, None, factor_b, tile)[1]]
    dq, delta = _query_gradient(*own, out_bhnd, lse_bhn, factor_b, wanted == "qkv", tile)
    if wanted == "q":
        return [dq]
    return [dq, *_key_gradients(*own, lse_bhn, delta, factor_b, tile)]


def _forward(q, k, v, source, tile):
    source_q, source_k, mapped_v, weight_b = source or (q, k, v, None)
    tensors = [launch.readable(x) for x in (q, k, v)]
    source_tensors = [launch.readable(x) for x in (source_q, source_k, mapped_v)]
    batch, heads, queries, size = q.shape
    out, lse = like_unet(q), new_lse(q)
    source_lse = lse if source is None else new_lse(q)
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

    with launch.on(q):
        # Tuned without injection: a sample that injects nothing keeps its bits.
        run(tile or _tuned("forward", q, k, lambda tile: run(tile, injected=False)))
    return out, lse, source_lse


def _query_gradient(grad, q, k, v, out, lse, factor_b, store_delta, tile):
    """dQ, times a factor per sample if one is given, and delta (B,H,N), unscaled."""
    short = k.shape[2] <= SHORT_KEYS
    if out is None and not short:
        out, _ = forward(q, k, v)  # injection saves no output of its own part; texts are short
    tensors = [launch.readable(x) for x in (q, k, v, q if short else out, grad)]
    batch, heads, queries, size = q.shape
    dq, delta = like_unet(q), torch.empty_like(lse)
    align = launch.alignment(*tensors, dq)

    def run(tile: Tile) -> None:
        scaled = factor_b is not None
        constants = dq_constants(size, queries, k.shape[2], align, store_delta, scaled, tile)
        dq_kernel[(-(-queries // constants["ROWS"]) * batch * heads,)](
            *tensors, dq, lse, delta, factor_b, *launch.strides(align, *tensors, dq),
            heads, queries, k.shape[2], 1 / math.sqrt(size),
            **constants, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    with launch.on(q):
        run(tile or _tuned("dq", q, k, run))
    return dq, delta


def _key_gradients(grad, q, k, v, lse, delta, factor_b, tile):
    """dK and dV; without delta, dV alone."""
    tensors = [launch.readable(x) for x in (q, k, v, grad)]
    batch, heads, queries, size = q.shape
    keys, v_only = k.shape[2], delta is None
    splits = -(-queries // _ROWS_PER_SPLIT) if keys <= SHORT_KEYS else 1
    if splits > 1:
        # Partial sums of the splits, in fp32, to be added up in order.
        dk, dv = (q.new_empty(splits, *k.shape, dtype=torch.float32) for _ in range(2))
    else:
        dk, dv = like_unet(k)[None], like_unet(k)[None]
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

    with launch.on(q):
        run(tile or _tuned("dkv", q, k, run))
    if splits > 1:
        return None if v_only else like_unet(k).copy_(dk.sum(0)), like_unet(k).copy_(dv.sum(0))
    return None if v_only else dk[0], dv[0]


def _tuned(kernel: str, q: Tensor, k: Tensor, run) -> Tile:
    queries, keys, size = q.shape[2], k.shape[2], q.shape[3]
    family = launch.family(q.device)
    candidates = tiles_for(kernel, size, keys, q.element_size(), family)
    return launch.fastest((kernel, queries, keys, size, q.dtype), candidates, run, q.device)
