"""PyTorch's own attention without cuDNN's, whose gradients can be NaN (pytorch#196678)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastdigin_kernels.common import devices

_CUDA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V -> (B,H,N,d)."""
    if devices.kind_of(q_bhnd.device) != "cuda":
        return scaled_dot_product_attention(q_bhnd, k_bhtd, v_bhtd)
    with sdpa_kernel(_CUDA_BACKENDS):
        return scaled_dot_product_attention(q_bhnd, k_bhtd, v_bhtd)
