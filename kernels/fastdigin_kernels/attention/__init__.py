"""Attention, and prompt-to-prompt attention that never stores a map."""

from fastdigin_kernels.attention.api import (
    IMPLEMENTATIONS,
    attention,
    injected_attention,
    mapped_attention,
    unavailable,
)

__all__ = [
    "IMPLEMENTATIONS",
    "attention",
    "injected_attention",
    "mapped_attention",
    "unavailable",
]
