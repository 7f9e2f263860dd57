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
    native.check(
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


def backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor | None,
    lse_bhn: Tensor,
    factor_b: Tensor | None,
    wanted: str,
) -> list[Tensor]:
    """Those of dq, dk and dv that are wanted."""
    inputs = {"q": q_bhnd, "k": k_bhtd, "v": v_bhtd}
    gradients = {name: like_unet(x) for name, x in inputs.items() if name in wanted}
    grad, q, k, v, out = (_readable(x) for x in (grad_bhnd, *inputs.values(), out_bhnd))
    lse_bhn = lse_bhn.contiguous()
    native.check(
        _library.fastdigin_attention_backward(
            _backward_fields(
                *_size(q, k), *_heads(grad), *_heads(q), *_heads(k), *_heads(v), *_heads(out),
                lse_bhn.data_ptr(), 0 if factor_b is None else factor_b.data_ptr(),
                *(field for name in "qkv" for field in _heads(gradients.get(name))),
            ),
            torch.get_num_threads(),
        )
    )  # fmt: skip
    return list(gradients.values())


def _size(q: Tensor, k: Tensor) -> tuple[int, ...]:
    batch, heads, queries, size = q.shape
    return batch, heads, queries, k.shape[2], size


def _heads(x: Tensor | None) -> tuple[int, ...]:
    if x is None:
        return 0, 0, 0, 0
    batch, head, row, _ = x.stride()
    return x.data_ptr(), batch, head, row


def _readable(x: Tensor | None) -> Tensor | None:
    """x itself where the numbers of a row lie side by side, or a copy."""
    return x if x is None or x.stride(3) == 1 else x.contiguous()
