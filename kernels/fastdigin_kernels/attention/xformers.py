"""Attention by xFormers' memory-efficient kernels, an optional dependency.

It is taken only where it is named: importing xFormers beside another torch than it was built for
costs seconds and warnings, and ``auto`` asks nobody to. Forward and backward are named, so that
both read the same log-sum-exp: xFormers would else choose for each by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from xformers.ops import fmha

from fastdigin_kernels.attention.operations import like_unet

_LSE_MULTIPLE = 32  # rows that the kernels' log-sum-exp is padded to
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why such tensors cannot be taken, or None."""
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if dtype not in _DTYPES:
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    return None


def forward(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> tuple[Tensor, Tensor]:
    """(out (B,H,N,d), lse (B,H,N))."""
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(
        *(_joined(x) for x in (q_bhnd, k_bhtd, v_bhtd)), op=fmha.cutlass.FwOp
    )
    return like_unet(q_bhnd).copy_(out.transpose(1, 2)), lse[..., : q_bhnd.shape[2]].contiguous()


def backward(
    grad_bhnd: Tensor,
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    out_bhnd: Tensor,
    lse_bhn: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)."""
    lse = F.pad(lse_bhn, (0, -lse_bhn.shape[-1] % _LSE_MULTIPLE))
    gradients = fmha.memory_efficient_attention_backward(
        _joined(grad_bhnd), _joined(out_bhnd), lse,
        *(_joined(x) for x in (q_bhnd, k_bhtd, v_bhtd)), op=fmha.cutlass.BwOp,
    )  # fmt: skip
    dq, dk, dv = (
        like_unet(x).copy_(gradient.transpose(1, 2))
        for x, gradient in zip((q_bhnd, k_bhtd, v_bhtd), gradients, strict=True)
    )
    return dq, dk, dv


def query_gradient(*arguments: Tensor) -> Tensor:
    """dq alone, though xFormers computes all three."""
    return backward(*arguments)[0]


def _joined(x_bhnd: Tensor) -> Tensor:
    """xFormers' layout, (B,N,H,d) with contiguous rows."""
    x_bnhd = x_bhnd.transpose(1, 2)
    return x_bnhd if x_bnhd.stride(-1) == 1 else x_bnhd.contiguous()
