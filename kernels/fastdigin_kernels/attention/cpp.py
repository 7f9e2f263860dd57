"""Attention in fp32 on the CPU, by the C++ library (csrc/attention_forward.h and _backward.h).

A backend module as operations.py describes them. Any head size and any number of queries and
keys, without padding. A sample's results do not depend on the batch, the threads or the strides.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastdigin_kernels.attention.operations import like_unet, new_lse
from fastdigin_kernels.common import native
from fastdigin_kernels.common.native import unsupported  # noqa: F401 - as operations.py wants it

_library = native.load()  # an ImportError tells why there is none

# FastdiginAttentionForward and FastdiginAttentionBackward of csrc/fastdigin_cpu.h.
_forward_fields = struct.Struct(f"{5 + 4 * 4 + 3}q").pack
_backward_fields = struct.Struct(f"{5 + 5 * 4 + 2 + 3 * 4}q").pack


def forward(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor | None = None,
    lse_bhn: Tensor | None = None,
    factor_b: Tensor | None = None,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out (B,H,N,d), lse (B,H,N)).

    For `injected_forward`, which gives the tensors to write to: out is multiplied by a factor per
    sample, and added to what is there if ``accumulate``.
    """
    if out_bhnd is None or lse_bhn is None:
        out_bhnd, lse_bhn = like_unet(q_bhnd), new_lse(q_bhnd)
    q_bhnd, k_bhtd, v_bhtd = (_readable(x) for x in (q_bhnd, k_bhtd, v_bhtd))
    factor_b = _contiguous_fp32(factor_b)
    _check(
        _library.fastdigin_attention_forward(
            _forward_fields(
                *_size(q_bhnd, k_bhtd), *_heads(q_bhnd), *_heads(k_bhtd), *_heads(v_bhtd),
                *_heads(out_bhnd), lse_bhn.data_ptr(),
                0 if factor_b is None else factor_b.data_ptr(), accumulate,
            ),
            torch.get_num_threads(),
        )
    )  # fmt: skip
    return out_bhnd, lse_bhn


def backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor,
    lse_bhn: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)."""
    dq, dk, dv = like_unet(q_bhnd), like_unet(k_bhtd), like_unet(v_bhtd)
    _backward(grad_bhnd, q_bhnd, k_bhtd, v_bhtd, out_bhnd, lse_bhn, None, dq, dk, dv)
    return dq, dk, dv


def query_gradient(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor,
    lse_bhn: Tensor,
) -> Tensor:
    """dq alone."""
    dq = like_unet(q_bhnd)
    _backward(grad_bhnd, q_bhnd, k_bhtd, v_bhtd, out_bhnd, lse_bhn, None, dq, None, None)
    return dq


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

    Of a sample whose weight is 0 or 1 only one of both is computed; the other's lse is 0.
    """
    out = like_unet(q_bhnd)
    lse, source_lse = new_lse(q_bhnd), new_lse(q_bhnd)
    forward(q_bhnd, k_bhtd, v_bhtd, out, lse, 1 - weight_b)
    source = (source_q_bhnd, source_k_bhsd, mapped_v_bhsd)
    forward(*source, out, source_lse, weight_b, accumulate=True)
    return out, lse, source_lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dmapped_v)."""
    dq, dk, dv = like_unet(q_bhnd), like_unet(k_bhtd), like_unet(v_bhtd)
    dmapped = like_unet(mapped_v_bhsd)
    _backward(grad_bhnd, q_bhnd, k_bhtd, v_bhtd, None, lse_bhn, 1 - weight_b, dq, dk, dv)
    source = (source_q_bhnd, source_k_bhsd, mapped_v_bhsd)
    _backward(grad_bhnd, *source, None, source_lse_bhn, weight_b, None, None, dmapped)
    return dq, dk, dv, dmapped


def injected_query_gradient(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    weight_b: Tensor,
    lse_bhn: Tensor,
) -> Tensor:
    """dq alone."""
    dq = like_unet(q_bhnd)
    _backward(grad_bhnd, q_bhnd, k_bhtd, v_bhtd, None, lse_bhn, 1 - weight_b, dq, None, None)
    return dq


def _backward(grad, q, k, v, out, lse, factor_b, dq, dk, dv) -> None:
    """Writes the gradients that are not None; out is None where it is to be computed anew."""
    grad, q, k, v = (_readable(x) for x in (grad, q, k, v))
    out = None if out is None else _readable(out)
    factor_b, lse = _contiguous_fp32(factor_b), lse.contiguous()
    _check(
        _library.fastdigin_attention_backward(
            _backward_fields(
                *_size(q, k), *_heads(grad), *_heads(q), *_heads(k), *_heads(v), *_heads(out),
                lse.data_ptr(), 0 if factor_b is None else factor_b.data_ptr(),
                *_heads(dq), *_heads(dk), *_heads(dv),
            ),
            torch.get_num_threads(),
        )
    )  # fmt: skip


def _size(q: Tensor, k: Tensor) -> tuple[int, ...]:
    batch, heads, queries, size = q.shape
    return batch, heads, queries, k.shape[2], size


def _heads(x: Tensor | None) -> tuple[int, ...]:
    if x is None:
        return 0, 0, 0, 0
    batch, head, row, _ = x.stride()
    return x.data_ptr(), batch, head, row


def _readable(x: Tensor) -> Tensor:
    """x itself where the numbers of a row lie side by side, or a copy."""
    return x if x.stride(3) == 1 else x.contiguous()


def _contiguous_fp32(x_b: Tensor | None) -> Tensor | None:
    return None if x_b is None else x_b.to(torch.float32).contiguous()


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the C++ attention found no scratch memory")
