"""Attention by cuDNN, through PyTorch: ``auto`` may take it on CUDA once its results are checked.

Its gradients can be NaN (pytorch#196678), so `sdpa` leaves it out and choice.py looks at them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastdigin_kernels.common import devices

_LARGEST_HEAD = 128


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why cuDNN cannot take such tensors, or None if it can."""
    if devices.kind_of(device) != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    if shape[-1] % 8 or shape[-1] > _LARGEST_HEAD:
        return f"it takes head sizes that 8 divides, up to {_LARGEST_HEAD}, not {shape[-1]}"
    if devices.pretended() is None and not torch.backends.cudnn.is_available():
        return "torch finds no cuDNN"
    return None


def attend(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V -> (B,H,N,d)."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q_bhnd, k_bhtd, v_bhtd)
