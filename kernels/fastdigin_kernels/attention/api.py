"""Attention, and prompt-to-prompt attention that never stores the map of the edited prompt.

Prompt-to-prompt replaces the attention map A of the edited prompt by A' = A_src M^T: what a query
of the source image paid to a source word goes to the target words that the mapping M gives it to.
Because

    A' V = softmax(Q_src K_src^T / sqrt(d)) (M^T V),

injection is ordinary attention with the SOURCE queries and keys and with mapped values. No map over
the target tokens exists, forward or backward, and any fused attention serves.

Shapes: B samples, H heads, N image tokens, T target (key) tokens, S source tokens, d head size.
Every function takes ``impl``, the implementation. PyTorch's own and the reference take any dtype
and device and are differentiable in every argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdigin_kernels.attention import cudnn
from fastdigin_kernels.attention.operations import (
    differentiable_attention,
    differentiable_injected_attention,
)
from fastdigin_kernels.attention.reference import attention_reference
from fastdigin_kernels.attention.sdpa import sdpa
from fastdigin_kernels.attention.tiles import SHORT_KEYS
from fastdigin_kernels.common import choice
from fastdigin_kernels.common.autograd import require_frozen
from fastdigin_kernels.common.registry import backend

IMPLEMENTATIONS = ("auto", "sdpa", "triton", "cpp", "cudnn", "xformers", "reference")

_INJECTING = ("triton", "cpp")
"""Those with a kernel of their own for injected attention; others compute both parts and blend."""
_TIMED_ROWS = 16384  # of queries, all heads and samples together


def attention(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, impl: str = "auto") -> Tensor:
    """softmax(Q K^T / sqrt(d)) V -> (B,H,N,d).

    impl: "sdpa" (PyTorch's own), "triton", "cpp", "cudnn", "xformers" (optional, only by name),
    "reference", or "auto", which takes the fastest for the shape (common/choice.py). "reference"
    and "sdpa" take any dtype and device and have second derivatives where PyTorch's has; the others
    have none.

    Raises ValueError for shapes, dtypes or devices that do not belong together, and BackendError
    where the named implementation cannot run: none is put in its place.
    """
    shape = _check(q_bhnd, k_bhtd, v_bhtd)
    impl = choice.choose("attention", impl, shape, q_bhnd)
    if impl == "sdpa":
        return sdpa(q_bhnd, k_bhtd, v_bhtd)
    if impl == "reference":
        return attention_reference(q_bhnd, k_bhtd, v_bhtd)
    if impl == "cudnn":
        return cudnn.attend(q_bhnd, k_bhtd, v_bhtd)
    if impl == "xformers":
        return backend("attention", impl).attend(q_bhnd, k_bhtd, v_bhtd)
    return differentiable_attention()(q_bhnd, k_bhtd, v_bhtd, impl)


def injected_attention(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapping_bts: Tensor | None,
    weight_b: Tensor,
    impl: str = "auto",
) -> Tensor:
    """weight * softmax(Q_src K_src^T / sqrt(d)) (M^T V) + (1 - weight) * attention(Q, K, V).

    mapping: M, each column (source token) summing to 1 over the target tokens, or None where both
    have the same tokens (self-attention). weight: one number in [0,1] per sample; 0 is plain
    attention to the last bit, 1 full injection. Both are cast to the dtype of V. impl and errors as
    for `attention`; with a backend, source queries and keys and the weight must be frozen
    (ValueError). Returns (B,H,N,d).
    (Hertz et al., Prompt-to-Prompt, arXiv 2208.01626, section 3.2.)
    """
    mapped_v = _map_values(v_bhtd, mapping_bts)
    _check_weight(weight_b, q_bhnd)
    shape = _check(q_bhnd, k_bhtd, v_bhtd)
    impl = choice.choose("attention", impl, shape, q_bhnd)
    if impl not in _INJECTING:
        injected = attention(source_q_bhnd, source_k_bhsd, mapped_v, impl)
        return _blend(injected, attention(q_bhnd, k_bhtd, v_bhtd, impl), weight_b)
    _check(source_q_bhnd, source_k_bhsd, mapped_v)
    _check_source(q_bhnd, source_q_bhnd)
    require_frozen(
        "injected attention", source_q=source_q_bhnd, source_k=source_k_bhsd, weight=weight_b
    )
    return differentiable_injected_attention()(
        q_bhnd, k_bhtd, v_bhtd, source_q_bhnd, source_k_bhsd, mapped_v,
        weight_b.float().contiguous(), impl,
    )  # fmt: skip


def mapped_attention(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_map_bhns: Tensor,
    mapping_bts: Tensor | None,
    weight_b: Tensor,
    impl: str = "auto",
) -> Tensor:
    """`injected_attention` from a stored source map A_src (rows sum to 1) -> (B,H,N,d).

    For where the map is smaller than the source queries, S < d.
    """
    mapped_v = _map_values(v_bhtd, mapping_bts)
    _check_weight(weight_b, q_bhnd)
    injected = source_map_bhns.to(v_bhtd.dtype) @ mapped_v
    return _blend(injected, attention(q_bhnd, k_bhtd, v_bhtd, impl), weight_b)


def unavailable(impl: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why ``impl`` cannot serve heads of this size on this machine, or None if it can."""
    return choice.unavailable("attention", impl, (head_size,), dtype, device)


def _to_time(
    shape: choice.Shape, batch: int | None, dtype: torch.dtype, device: torch.device
) -> choice.Run:
    heads, image_tokens, tokens, size = shape
    batch = batch or choice.timed_batch(heads * image_tokens, _TIMED_ROWS)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(batch, rows, heads, size, generator=generator, device=device, dtype=dtype)
        .transpose(1, 2)
        for rows in (image_tokens, tokens, tokens, image_tokens)
    )  # fmt: skip
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def run(impl: str) -> list[Tensor]:
        output = attention(*inputs, impl)
        return [output.detach(), *torch.autograd.grad(output, inputs, grad)]

    return run


def _expected(shape: choice.Shape) -> bool:
    """Ours move less where all keys fit one tile; elsewhere they do 7 products for 5."""
    return shape[2] <= SHORT_KEYS


choice.declare(
    "attention",
    choice.Operation(
        "sdpa", IMPLEMENTATIONS, _to_time, expected=_expected,
        rivals={"cpu": ("cpp",), "cuda": ("triton", "cudnn")},
    ),
)  # fmt: skip


def _map_values(v_bhtd: Tensor, mapping_bts: Tensor | None) -> Tensor:
    """M^T V: the value each source token stands for -> (B,H,S,d)."""
    if mapping_bts is None:
        return v_bhtd
    batch, target_tokens = v_bhtd.shape[0], v_bhtd.shape[2]
    assert mapping_bts.shape[:2] == (batch, target_tokens), (
        f"mapping must be (samples, target tokens, source tokens) = ({batch}, {target_tokens}, S), "
        f"got {tuple(mapping_bts.shape)}"
    )
    return mapping_bts.to(v_bhtd.dtype).transpose(1, 2).unsqueeze(1) @ v_bhtd


def _blend(injected_bhnd: Tensor, own_bhnd: Tensor, weight_b: Tensor) -> Tensor:
    weight_b111 = weight_b.to(own_bhnd.dtype).view(-1, 1, 1, 1)
    return weight_b111 * injected_bhnd + (1 - weight_b111) * own_bhnd


def _check_weight(weight_b: Tensor, q_bhnd: Tensor) -> None:
    assert weight_b.shape == q_bhnd.shape[:1], (
        f"weight must be one number per sample, ({q_bhnd.shape[0]},), got {tuple(weight_b.shape)}"
    )


def _check(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> tuple[int, int, int, int]:
    """ValueError if they do not belong together; the shape that an implementation is chosen by."""
    q, k, v = q_bhnd.shape, k_bhtd.shape, v_bhtd.shape
    if not len(q) == len(k) == 4 or q[0] != k[0] or q[1] != k[1] or q[3] != k[3] or k != v:
        raise ValueError(
            "attention takes q (B,H,N,d) and k and v (B,H,T,d), got "
            f"q {tuple(q)}, k {tuple(k)}, v {tuple(v)}"
        )
    if k[2] == 0 or q[3] == 0:
        raise ValueError(
            f"attention needs at least one key and a head size, got q {tuple(q)}, k {tuple(k)}"
        )
    if not q_bhnd.dtype is k_bhtd.dtype is v_bhtd.dtype:
        raise ValueError(
            "attention takes q, k and v of one dtype, got "
            f"{q_bhnd.dtype}, {k_bhtd.dtype} and {v_bhtd.dtype}"
        )
    if not q_bhnd.device == k_bhtd.device == v_bhtd.device:
        raise ValueError(
            "attention takes q, k and v on one device, got "
            f"{q_bhnd.device}, {k_bhtd.device} and {v_bhtd.device}"
        )
    return q[1], q[2], k[2], q[3]


def _check_source(q_bhnd: Tensor, source_q_bhnd: Tensor) -> None:
    if q_bhnd.shape != source_q_bhnd.shape:
        raise ValueError(
            f"the source's queries must be shaped as q, {tuple(q_bhnd.shape)}, got "
            f"{tuple(source_q_bhnd.shape)}"
        )
