"""Attention, and prompt-to-prompt attention that never stores a map."""

from fastdigin_kernels.attention.api import attention, injected_attention, mapped_attention
from fastdigin_kernels.attention.choice import IMPLEMENTATIONS, unavailable

__all__ = [
    "IMPLEMENTATIONS",
    "attention",
    "injected_attention",
    "mapped_attention",
    "unavailable",
]
