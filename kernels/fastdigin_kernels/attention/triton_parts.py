"""What the Triton attention kernels share: tiles of split heads, and the online softmax.

A head of d numbers is held as two pieces whose widths are powers of two (tiles.py): [:, :D0] and
[:, D0:], the second padded to D1. Tensor cores want powers of two, and one piece for d = 40 would
have to be 64 wide. A product over the head dimension is the sum of the products of the pieces,
accumulated in one fp32 tile; a product that yields a head is one tile per piece. Where D1 is 0
there is one piece, and the second one's variables are stand-ins that the compiler drops.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_offset(pid, heads, stride_b, stride_h, ALIGN: tl.constexpr):
    """Where head pid % heads of sample pid // heads begins, in 64 bits.

    The strides come in units of ALIGN and may exceed 32 bits only when multiplied by it.
    """
    batch = (pid // heads).to(tl.int64)
    return (batch * stride_b + (pid % heads).to(tl.int64) * stride_h) * ALIGN


@triton.jit
def row_offset(row, stride):
    """Where a row of a head begins, in 64 bits."""
    return tl.cast(row, tl.int64) * stride


@triton.jit
def query_offsets(first_row, head, queries, ROWS: tl.constexpr):
    """Where a tile of queries finds its log-sum-exp and delta, (B,H,N) contiguous; a mask."""
    rows = first_row + tl.arange(0, ROWS)
    return row_offset(head, queries) + rows, rows < queries


@triton.jit
def load_piece(ptr, stride, first_row, end_row, ROWS: tl.constexpr, FIRST: tl.constexpr,
               END: tl.constexpr, WIDTH: tl.constexpr, MASK_ROWS: tl.constexpr):  # fmt: skip
    """Rows [first_row, first_row + ROWS) and columns [FIRST, FIRST + WIDTH) -> (ROWS, WIDTH).

    ptr is at row first_row already. Rows from end_row on (if MASK_ROWS) and columns from END on
    are zero.
    """
    rows = tl.arange(0, ROWS)
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = ptr + rows[:, None] * stride + columns[None, :]
    if MASK_ROWS:
        mask = (first_row + rows < end_row)[:, None]
        if FIRST + WIDTH > END:
            mask = mask & (columns < END)[None, :]
        piece = tl.load(pointers, mask=mask, other=0.0)
    elif FIRST + WIDTH > END:
        piece = tl.load(pointers, mask=(columns < END)[None, :], other=0.0)
    else:
        piece = tl.load(pointers)
    return piece


@triton.jit
def load_head(ptr, stride, first_row, end_row, ROWS: tl.constexpr, D: tl.constexpr,
              D0: tl.constexpr, D1: tl.constexpr, MASK_ROWS: tl.constexpr):  # fmt: skip
    """Both pieces of ROWS rows."""
    piece0 = load_piece(ptr, stride, first_row, end_row, ROWS, 0, D, D0, MASK_ROWS)
    piece1 = piece0
    if D1 > 0:
        piece1 = load_piece(ptr, stride, first_row, end_row, ROWS, D0, D, D1, MASK_ROWS)
    return piece0, piece1


@triton.jit
def store_head(ptr, stride, first_row, end_row, piece0, piece1, ROWS: tl.constexpr,
               D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):  # fmt: skip
    """Writes the valid part of both pieces, in the dtype of ptr; ptr is at row first_row."""
    rows = tl.arange(0, ROWS)
    row_mask = (first_row + rows < end_row)[:, None]
    columns = tl.arange(0, D0)
    pointers = ptr + rows[:, None] * stride
    mask = row_mask & (columns < D)[None, :]
    tl.store(pointers + columns[None, :], piece0.to(ptr.dtype.element_ty), mask=mask)
    if D1 > 0:
        columns = D0 + tl.arange(0, D1)
        mask = row_mask & (columns < D)[None, :]
        tl.store(pointers + columns[None, :], piece1.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def dot_heads(a0, a1, b0, b1, D1: tl.constexpr):
    """A B^T over the whole head dimension, in fp32: the pieces are summed before any softmax."""
    # fp32 inputs are multiplied in full precision, not as TF32.
    product = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        product = tl.dot(a1, tl.trans(b1), product, input_precision="ieee")
    return product


@triton.jit
def add_dot(acc0, acc1, a, b0, b1, D1: tl.constexpr):
    """(acc0 + A B0, acc1 + A B1), A rounded to the dtype of B."""
    a = a.to(b0.dtype)
    acc0 = tl.dot(a, b0, acc0, input_precision="ieee")
    if D1 > 0:
        acc1 = tl.dot(a, b1, acc1, input_precision="ieee")
    return acc0, acc1


@triton.jit
def zero_heads(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """fp32 accumulators for both pieces."""
    acc0 = tl.zeros([ROWS, D0], dtype=tl.float32)
    acc1 = acc0
    if D1 > 0:
        acc1 = tl.zeros([ROWS, D1], dtype=tl.float32)
    return acc0, acc1


@triton.jit
def attend_step(acc0, acc1, row_max, row_sum, q0, q1, k_ptr, v_ptr, stride_k, stride_v, first_key,
                end_key, scale_log2, COLS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
                D1: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    """Takes COLS more keys into the online softmax; the running maximum is that of log2 scores."""
    k0, k1 = load_head(k_ptr, stride_k, first_key, end_key, COLS, D, D0, D1, MASK)
    scores = dot_heads(q0, q1, k0, k1, D1) * scale_log2
    if MASK:
        valid = first_key + tl.arange(0, COLS) < end_key
        scores = tl.where(valid[None, :], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    p = tl.exp2(scores - new_max[:, None])
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(p, 1)
    v0, v1 = load_head(v_ptr, stride_v, first_key, end_key, COLS, D, D0, D1, MASK)
    acc0 = acc0 * shrink[:, None]
    if D1 > 0:
        acc1 = acc1 * shrink[:, None]
    acc0, acc1 = add_dot(acc0, acc1, p, v0, v1, D1)
    return acc0, acc1, new_max, row_sum


@triton.jit
def attend(q0, q1, k_ptr, v_ptr, stride_k, stride_v, end_key, scale_log2, ROWS: tl.constexpr,
           COLS: tl.constexpr, FULL: tl.constexpr, TAIL: tl.constexpr, D: tl.constexpr,
           D0: tl.constexpr, D1: tl.constexpr):  # fmt: skip
    """softmax(Q K^T) V over end_key keys -> the two pieces, and log2 of the softmax's sum.

    Full tiles need no masks; what is left of the keys goes into one last tile of TAIL columns, as
    narrow as a power of two can be (77 keys: 64 + 16). FULL is "none", "one" or "loop": with one
    full tile there is no loop.
    """
    acc0, acc1 = zero_heads(ROWS, D0, D1)
    row_max = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([ROWS], dtype=tl.float32)
    end_full = 0
    if FULL == "one":
        acc0, acc1, row_max, row_sum = attend_step(
            acc0, acc1, row_max, row_sum, q0, q1, k_ptr, v_ptr, stride_k, stride_v, 0, COLS,
            scale_log2, COLS, D, D0, D1, False)  # fmt: skip
        end_full = COLS
    elif FULL == "loop":
        end_full = end_key // COLS * COLS
        for first_key in range(0, end_full, COLS):
            acc0, acc1, row_max, row_sum = attend_step(
                acc0, acc1, row_max, row_sum, q0, q1,
                k_ptr + row_offset(first_key, stride_k),
                v_ptr + row_offset(first_key, stride_v),
                stride_k, stride_v, first_key, end_key, scale_log2,
                COLS, D, D0, D1, False)  # fmt: skip
    if TAIL > 0:
        acc0, acc1, row_max, row_sum = attend_step(
            acc0, acc1, row_max, row_sum, q0, q1,
            k_ptr + row_offset(end_full, stride_k),
            v_ptr + row_offset(end_full, stride_v),
            stride_k, stride_v, end_full, end_key, scale_log2, TAIL, D, D0, D1, True)  # fmt: skip
    acc0 = acc0 / row_sum[:, None]
    if D1 > 0:
        acc1 = acc1 / row_sum[:, None]
    return acc0, acc1, row_max + tl.log2(row_sum)
