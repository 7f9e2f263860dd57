"""Attention forward in Triton: output and log-sum-exp; for one key sequence, or two blended.

One program takes a tile of queries past all keys with the online softmax (Dao, FlashAttention-2,
arXiv 2307.08691); nothing of size N x T leaves the chip. What is shaped otherwise than there, and
why, is written in triton_parts.py and tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdigin_kernels.attention.tiles import Lengthwise, Tile, fit_rows, split
from fastdigin_kernels.attention.triton_parts import (
    attend,
    head_offset,
    load_head,
    row_offset,
    store_head,
)


def forward_constants(
    size: int, queries: int, keys: int, source_keys: int | None, align: int, tile: Tile
) -> dict:
    """What `forward_kernel` is compiled for; source_keys: None without injection."""
    d0, d1 = split(size)
    own = Lengthwise.keys(keys, tile.cols)
    source = Lengthwise.keys(source_keys or keys, tile.cols)
    return {
        "D": size, "D0": d0, "D1": d1, "ALIGN": align, "ROWS": fit_rows(tile.rows, queries),
        "COLS": own.size, "FULL": own.full, "TAIL": own.tail, "INJECTED": source_keys is not None,
        "S_COLS": source.size, "S_FULL": source.full, "S_TAIL": source.tail,
    }  # fmt: skip


_STRIDES = [f"{x}_{i}" for x in ("q", "k", "v", "out", "sq", "sk", "sv") for i in "bhn"]


@triton.jit(do_not_specialize=[*_STRIDES, "heads", "queries", "keys", "source_keys"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    source_q_ptr, source_k_ptr, mapped_v_ptr, weight_ptr, source_lse_ptr,
    sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n,
    heads, queries, keys, source_keys, scale_log2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FULL: tl.constexpr, TAIL: tl.constexpr,
    INJECTED: tl.constexpr, S_COLS: tl.constexpr, S_FULL: tl.constexpr, S_TAIL: tl.constexpr,
):  # fmt: skip
    """One tile of ROWS queries of one head. Strides come in units of ALIGN elements."""
    tiles = tl.cdiv(queries, ROWS)
    head = tl.program_id(0) // tiles  # programs of one head are neighbours: they share its keys
    first_row = tl.program_id(0) % tiles * ROWS
    # A stride written as a product tells the compiler how far loads are aligned.
    q_n, k_n, v_n, out_n = q_n * ALIGN, k_n * ALIGN, v_n * ALIGN, out_n * ALIGN
    q_ptr += head_offset(head, heads, q_b, q_h, ALIGN) + row_offset(first_row, q_n)
    k_ptr += head_offset(head, heads, k_b, k_h, ALIGN)
    v_ptr += head_offset(head, heads, v_b, v_h, ALIGN)
    out_ptr += head_offset(head, heads, out_b, out_h, ALIGN) + row_offset(first_row, out_n)

    q0, q1 = load_head(q_ptr, q_n, first_row, queries, ROWS, D, D0, D1, True)
    out0, out1, lse2 = attend(
        q0, q1, k_ptr, v_ptr, k_n, v_n, keys, scale_log2, ROWS, COLS, FULL, TAIL, D, D0, D1
    )
    rows = first_row + tl.arange(0, ROWS)
    lse_offset = row_offset(head, queries) + rows
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(lse_ptr + lse_offset, lse2 * LN_2, mask=rows < queries)

    if INJECTED:
        sq_n, sk_n, sv_n = sq_n * ALIGN, sk_n * ALIGN, sv_n * ALIGN
        source_q_ptr += head_offset(head, heads, sq_b, sq_h, ALIGN)
        source_k_ptr += head_offset(head, heads, sk_b, sk_h, ALIGN)
        mapped_v_ptr += head_offset(head, heads, sv_b, sv_h, ALIGN)
        source_q_ptr += row_offset(first_row, sq_n)
        q0, q1 = load_head(source_q_ptr, sq_n, first_row, queries, ROWS, D, D0, D1, True)
        injected0, injected1, lse2 = attend(
            q0, q1, source_k_ptr, mapped_v_ptr, sk_n, sv_n, source_keys, scale_log2,
            ROWS, S_COLS, S_FULL, S_TAIL, D, D0, D1,
        )  # fmt: skip
        tl.store(source_lse_ptr + lse_offset, lse2 * LN_2, mask=rows < queries)
        weight = tl.load(weight_ptr + head // heads)
        out0 = weight * injected0 + (1 - weight) * out0
        if D1 > 0:
            out1 = weight * injected1 + (1 - weight) * out1
    store_head(out_ptr, out_n, first_row, queries, out0, out1, ROWS, D, D0, D1)
