"""Attention backward in Triton: dK and dV, or dV alone.

    dV = P^T dO    dK = (P (dP - delta))^T Q / sqrt(d)    (the rest as in triton_dq.py)

One program takes a tile of keys past the queries and rebuilds P from the log-sum-exp. "V only" is
for the mapped values of prompt-to-prompt, whose queries and keys are the source's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdigin_kernels.attention.tiles import Lengthwise, Tile, fit_rows, split
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


def dkv_constants(
    size: int, queries: int, keys: int, align: int, scaled: bool, v_only: bool, tile: Tile
) -> dict:
    """What `dkv_kernel` is compiled for."""
    d0, d1 = split(size)
    rows = fit_rows(tile.rows, queries)
    side = Lengthwise.key_tiles(keys, tile.cols)
    return {
        "D": size, "D0": d0, "D1": d1, "ALIGN": align, "ROWS": rows,
        "ROW_TAIL": Lengthwise.walk(queries, rows).tail,
        "COLS": side.size, "FULL": side.full, "TAIL": side.tail, "SCALED": scaled,
        "V_ONLY": v_only,
    }  # fmt: skip


_INTEGERS = [f"{x}_{i}" for x in ("q", "k", "v", "grad", "dk", "dv") for i in "bhn"]
_INTEGERS += ["heads", "queries", "keys", "rows_per_split", "part"]


@triton.jit(do_not_specialize=_INTEGERS)
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, factor_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, grad_b, grad_h, grad_n,
    dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    heads, queries, keys, scale, rows_per_split, part,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, ROW_TAIL: tl.constexpr, COLS: tl.constexpr, FULL: tl.constexpr,
    TAIL: tl.constexpr, SCALED: tl.constexpr, V_ONLY: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of one head, from one split of the queries.

    Few keys make few programs: the queries are then split, split i writing its sums ``part`` * i
    units further on, and the launcher adds them up in order. The last program of a split takes
    the tail of the keys.
    """
    tiles = keys // COLS + (1 if TAIL > 0 else 0)
    split = tl.program_id(1)
    head = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    first_row = split * rows_per_split
    end_row = tl.minimum(first_row + rows_per_split, queries)
    q_n, k_n, v_n, grad_n, dk_n, dv_n = (
        q_n * ALIGN, k_n * ALIGN, v_n * ALIGN, grad_n * ALIGN, dk_n * ALIGN, dv_n * ALIGN
    )  # fmt: skip
    q_ptr += head_offset(head, heads, q_b, q_h, ALIGN)
    k_ptr += head_offset(head, heads, k_b, k_h, ALIGN)
    v_ptr += head_offset(head, heads, v_b, v_h, ALIGN)
    grad_ptr += head_offset(head, heads, grad_b, grad_h, ALIGN)
    split_offset = row_offset(split, part) * ALIGN
    dk_ptr += head_offset(head, heads, dk_b, dk_h, ALIGN) + split_offset
    dv_ptr += head_offset(head, heads, dv_b, dv_h, ALIGN) + split_offset
    factor = 1.0
    if SCALED:
        factor = tl.load(factor_ptr + head // heads)

    if FULL != "none":  # noqa: SIM102 - decided at compile time
        if tile * COLS + COLS <= keys:
            _dkv_tile(q_ptr, k_ptr, v_ptr, grad_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, q_n, k_n,
                      v_n, grad_n, dk_n, dv_n, head, tile * COLS, first_row, end_row, queries, keys,
                      scale, factor, D, D0, D1, ROWS, ROW_TAIL, COLS, False, V_ONLY)  # fmt: skip
    if TAIL > 0:  # noqa: SIM102
        if tile == tiles - 1:
            _dkv_tile(q_ptr, k_ptr, v_ptr, grad_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, q_n, k_n,
                      v_n, grad_n, dk_n, dv_n, head, tile * COLS, first_row, end_row, queries, keys,
                      scale, factor, D, D0, D1, ROWS, ROW_TAIL, TAIL, True, V_ONLY)  # fmt: skip


@triton.jit
def _dkv_tile(q_ptr, k_ptr, v_ptr, grad_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, q_n, k_n, v_n,
              grad_n, dk_n, dv_n, head, first_key, first_row, end_row, queries, keys, scale, factor,
              D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
              ROW_TAIL: tl.constexpr, COLS: tl.constexpr, MASK: tl.constexpr,
              V_ONLY: tl.constexpr):  # fmt: skip
    """dK and dV of COLS keys from queries [first_row, end_row)."""
    k0, k1 = load_head(k_ptr + row_offset(first_key, k_n), k_n, first_key, keys, COLS, D, D0, D1,
                       MASK)  # fmt: skip
    v0, v1 = k0, k1
    if not V_ONLY:
        v0, v1 = load_head(v_ptr + row_offset(first_key, v_n), v_n, first_key, keys, COLS, D, D0,
                           D1, MASK)  # fmt: skip
    dk0, dk1 = zero_heads(COLS, D0, D1)
    dv0, dv1 = zero_heads(COLS, D0, D1)
    scale_log2 = scale * 1.4426950408889634
    end_full = first_row + (end_row - first_row) // ROWS * ROWS
    for row in range(first_row, end_full, ROWS):
        dk0, dk1, dv0, dv1 = _dkv_step(
            dk0, dk1, dv0, dv1, k0, k1, v0, v1, q_ptr, grad_ptr, lse_ptr, delta_ptr, q_n, grad_n,
            head, row, queries, scale_log2, ROWS, D, D0, D1, False, V_ONLY)  # fmt: skip
    if ROW_TAIL > 0:  # noqa: SIM102
        if end_full < end_row:
            dk0, dk1, dv0, dv1 = _dkv_step(
                dk0, dk1, dv0, dv1, k0, k1, v0, v1, q_ptr, grad_ptr, lse_ptr, delta_ptr, q_n,
                grad_n, head, end_full, queries, scale_log2, ROW_TAIL, D, D0, D1, True,
                V_ONLY)  # fmt: skip
    dv0 *= factor
    if D1 > 0:
        dv1 *= factor
    store_head(dv_ptr + row_offset(first_key, dv_n), dv_n, first_key, keys, dv0, dv1, COLS, D, D0,
               D1)  # fmt: skip
    if not V_ONLY:
        dk0 *= scale * factor
        if D1 > 0:
            dk1 *= scale * factor
        store_head(dk_ptr + row_offset(first_key, dk_n), dk_n, first_key, keys, dk0, dk1, COLS, D,
                   D0, D1)  # fmt: skip


@triton.jit
def _dkv_step(dk0, dk1, dv0, dv1, k0, k1, v0, v1, q_ptr, grad_ptr, lse_ptr, delta_ptr, q_n, grad_n,
              head, first_row, queries, scale_log2, ROWS: tl.constexpr, D: tl.constexpr,
              D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr,
              V_ONLY: tl.constexpr):  # fmt: skip
    """Adds what ROWS queries contribute to the gradients of a tile of keys.

    Works on P^T and dS^T, which are then first operands of both products as they are. Queries past
    the end have dO = 0 and lse = delta = 0: P^T is 1 there and adds nothing.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    q_ptr += row_offset(first_row, q_n)
    grad_ptr += row_offset(first_row, grad_n)
    row_offsets, row_mask = query_offsets(first_row, head, queries, ROWS)
    if MASK:
        lse2 = tl.load(lse_ptr + row_offsets, mask=row_mask, other=0.0) * LOG2_E
    else:
        lse2 = tl.load(lse_ptr + row_offsets) * LOG2_E
    q0, q1 = load_head(q_ptr, q_n, first_row, queries, ROWS, D, D0, D1, MASK)
    p_t = tl.exp2(dot_heads(k0, k1, q0, q1, D1) * scale_log2 - lse2[None, :])
    grad0, grad1 = load_head(grad_ptr, grad_n, first_row, queries, ROWS, D, D0, D1, MASK)
    dv0, dv1 = add_dot(dv0, dv1, p_t, grad0, grad1, D1)
    if not V_ONLY:
        if MASK:
            delta = tl.load(delta_ptr + row_offsets, mask=row_mask, other=0.0)
        else:
            delta = tl.load(delta_ptr + row_offsets)
        ds_t = p_t * (dot_heads(v0, v1, grad0, grad1, D1) - delta[None, :])
        dk0, dk1 = add_dot(dk0, dk1, ds_t, q0, q1, D1)
    return dk0, dk1, dv0, dv1
