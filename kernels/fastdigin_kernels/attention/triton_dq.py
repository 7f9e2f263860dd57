"""Attention backward in Triton: dQ, and delta for the pass that computes dK and dV.

    dP = dO V^T    delta = sum_j P dP = dO . O    dQ = P (dP - delta) K / sqrt(d)

P is rebuilt from the log-sum-exp, which is of the scaled scores, in base e.

Every number is summed by one program in a fixed order, without atomics, so results repeat bit for
bit; hence separate passes for dQ and for dK and dV. Where the text is frozen, this one is all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdigin_kernels.attention.tiles import SHORT_KEYS, Lengthwise, Tile, fit_rows, split
from fastdigin_kernels.attention.triton_parts import (
    add_dot,
    dot_heads,
    head_offset,
    load_head,
    query_offsets,
    row_offset,
    store_head,
    zero_heads,
)


def dq_constants(
    size: int, queries: int, keys: int, align: int, store_delta: bool, scaled: bool, tile: Tile
) -> dict:
    """What `dq_kernel` is compiled for."""
    d0, d1 = split(size)
    side = Lengthwise.keys(keys, tile.cols)
    return {
        "D": size, "D0": d0, "D1": d1, "ALIGN": align, "ROWS": fit_rows(tile.rows, queries),
        "COLS": side.size, "FULL": side.full, "TAIL": side.tail, "SHORT": keys <= SHORT_KEYS,
        "STORE_DELTA": store_delta, "SCALED": scaled,
    }  # fmt: skip


_INTEGERS = [f"{x}_{i}" for x in ("q", "k", "v", "out", "grad", "dq") for i in "bhn"]
_INTEGERS += ["heads", "queries", "keys"]


@triton.jit(do_not_specialize=_INTEGERS)
def dq_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, dq_ptr, lse_ptr, delta_ptr, factor_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    grad_b, grad_h, grad_n, dq_b, dq_h, dq_n,
    heads, queries, keys, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FULL: tl.constexpr, TAIL: tl.constexpr,
    SHORT: tl.constexpr, STORE_DELTA: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """dQ of ROWS queries of one head, and delta for the other pass.

    SHORT: the whole row of P and dP is in registers, so delta = sum_j P dP needs no output: reading
    Q and dO and writing dQ is all the traffic, where reading O would be a third more reads.
    """
    tiles = tl.cdiv(queries, ROWS)
    head = tl.program_id(0) // tiles
    first_row = tl.program_id(0) % tiles * ROWS
    q_n, k_n, v_n, grad_n, dq_n = (
        q_n * ALIGN,
        k_n * ALIGN,
        v_n * ALIGN,
        grad_n * ALIGN,
        dq_n * ALIGN,
    )
    q_ptr += head_offset(head, heads, q_b, q_h, ALIGN) + row_offset(first_row, q_n)
    k_ptr += head_offset(head, heads, k_b, k_h, ALIGN)
    v_ptr += head_offset(head, heads, v_b, v_h, ALIGN)
    grad_ptr += head_offset(head, heads, grad_b, grad_h, ALIGN)
    grad_ptr += row_offset(first_row, grad_n)
    dq_ptr += head_offset(head, heads, dq_b, dq_h, ALIGN) + row_offset(first_row, dq_n)

    LOG2_E: tl.constexpr = 1.4426950408889634
    scale_log2 = scale * LOG2_E
    row_offsets, row_mask = query_offsets(first_row, head, queries, ROWS)
    lse2 = tl.load(lse_ptr + row_offsets, mask=row_mask, other=0.0) * LOG2_E
    q0, q1 = load_head(q_ptr, q_n, first_row, queries, ROWS, D, D0, D1, True)
    grad0, grad1 = load_head(grad_ptr, grad_n, first_row, queries, ROWS, D, D0, D1, True)
    dq0, dq1 = zero_heads(ROWS, D0, D1)

    if SHORT:
        end_full = 0
        if FULL == "one":
            p, dp, k0, k1 = _p_and_dp(q0, q1, grad0, grad1, lse2, k_ptr, v_ptr, k_n, v_n, 0, keys,
                                      scale_log2, COLS, D, D0, D1, False)  # fmt: skip
            delta = tl.sum(p * dp, 1)
            end_full = COLS
        else:
            delta = tl.zeros([ROWS], dtype=tl.float32)
        if TAIL > 0:
            tail_p, tail_dp, tail_k0, tail_k1 = _p_and_dp(
                q0, q1, grad0, grad1, lse2, k_ptr + row_offset(end_full, k_n),
                v_ptr + row_offset(end_full, v_n), k_n, v_n, end_full, keys, scale_log2,
                TAIL, D, D0, D1, True)  # fmt: skip
            delta += tl.sum(tail_p * tail_dp, 1)
            tail_ds = tail_p * (tail_dp - delta[:, None])
            dq0, dq1 = add_dot(dq0, dq1, tail_ds, tail_k0, tail_k1, D1)
        if FULL == "one":
            dq0, dq1 = add_dot(dq0, dq1, p * (dp - delta[:, None]), k0, k1, D1)
    else:
        out_n *= ALIGN
        out_ptr += head_offset(head, heads, out_b, out_h, ALIGN)
        out_ptr += row_offset(first_row, out_n)
        out0, out1 = load_head(out_ptr, out_n, first_row, queries, ROWS, D, D0, D1, True)
        delta = tl.sum(out0.to(tl.float32) * grad0.to(tl.float32), 1)
        if D1 > 0:
            delta += tl.sum(out1.to(tl.float32) * grad1.to(tl.float32), 1)
        end_full = keys // COLS * COLS
        for first_key in range(0, end_full, COLS):
            dq0, dq1 = _dq_step(dq0, dq1, delta, q0, q1, grad0, grad1, lse2, k_ptr, v_ptr, k_n, v_n,
                                first_key, keys, scale_log2, COLS, D, D0, D1, False)  # fmt: skip
        if TAIL > 0:
            dq0, dq1 = _dq_step(dq0, dq1, delta, q0, q1, grad0, grad1, lse2, k_ptr, v_ptr, k_n, v_n,
                                end_full, keys, scale_log2, TAIL, D, D0, D1, True)  # fmt: skip

    if STORE_DELTA:
        tl.store(delta_ptr + row_offsets, delta, mask=row_mask)
    if SCALED:
        scale *= tl.load(factor_ptr + head // heads)
    dq0 *= scale
    if D1 > 0:
        dq1 *= scale
    store_head(dq_ptr, dq_n, first_row, queries, dq0, dq1, ROWS, D, D0, D1)


@triton.jit
def _p_and_dp(q0, q1, grad0, grad1, lse2, k_ptr, v_ptr, k_n, v_n, first_key, keys, scale_log2,
              COLS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
              MASK: tl.constexpr):  # fmt: skip
    """P and dP = dO V^T of COLS keys, and the keys. Masked keys have P = 0."""
    k0, k1 = load_head(k_ptr, k_n, first_key, keys, COLS, D, D0, D1, MASK)
    p = tl.exp2(dot_heads(q0, q1, k0, k1, D1) * scale_log2 - lse2[:, None])
    if MASK:
        p = tl.where((first_key + tl.arange(0, COLS) < keys)[None, :], p, 0.0)
    v0, v1 = load_head(v_ptr, v_n, first_key, keys, COLS, D, D0, D1, MASK)
    return p, dot_heads(grad0, grad1, v0, v1, D1), k0, k1


@triton.jit
def _dq_step(dq0, dq1, delta, q0, q1, grad0, grad1, lse2, k_ptr, v_ptr, k_n, v_n, first_key, keys,
             scale_log2, COLS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
             MASK: tl.constexpr):  # fmt: skip
    p, dp, k0, k1 = _p_and_dp(
        q0, q1, grad0, grad1, lse2, k_ptr + row_offset(first_key, k_n),
        v_ptr + row_offset(first_key, v_n), k_n, v_n, first_key, keys, scale_log2,
        COLS, D, D0, D1, MASK)  # fmt: skip
    return add_dot(dq0, dq1, p * (dp - delta[:, None]), k0, k1, D1)
