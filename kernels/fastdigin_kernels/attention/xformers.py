"""Attention by xFormers' memory-efficient kernels, an optional dependency (extra ``xformers``).

It is taken only where it is named: importing xFormers beside another torch than it was built for
costs seconds and warnings, and ``auto`` asks nobody to.
"""

from __future__ import annotations

import torch
from torch import Tensor
from xformers.ops import fmha

from fastdigin_kernels.common import devices

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why xFormers cannot take such tensors, or None if it can."""
    if devices.kind_of(device) != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if dtype not in _DTYPES:
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    return None


def attend(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V -> (B,H,N,d), laid out as the U-Net's own.

    The same kernel goes there and back: left to itself xFormers would choose for each.
    """
    rows = (x.transpose(1, 2).contiguous() for x in (q_bhnd, k_bhtd, v_bhtd))  # (B,N,H,d)
    out = fmha.memory_efficient_attention(*rows, op=(fmha.cutlass.FwOp, fmha.cutlass.BwOp))
    return out.transpose(1, 2)
