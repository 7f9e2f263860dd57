"""Attention and its forms with injected maps, by their definitions: with the maps.

What the arguments mean is written beside the functions of these names in api.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_map_reference(q_bhnd: Tensor, k_bhtd: Tensor) -> Tensor:
    """The attention map A = softmax(Q K^T / sqrt(d)) -> (B,H,N,T)."""
    # Scaled before the product, which in fp16 could overflow.
    return torch.softmax(q_bhnd / math.sqrt(q_bhnd.shape[-1]) @ k_bhtd.transpose(-1, -2), dim=-1)


def attention_reference(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
    """`attention` by its definition, with the map."""
    return attention_map_reference(q_bhnd, k_bhtd) @ v_bhtd


def injected_attention_reference(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapping_bts: Tensor,
    weight_b: Tensor,
) -> Tensor:
    """`injected_attention` by its definition: (weight * A_src M^T + (1 - weight) * A) V."""
    source_map = attention_map_reference(source_q_bhnd, source_k_bhsd)
    return mapped_attention_reference(q_bhnd, k_bhtd, v_bhtd, source_map, mapping_bts, weight_b)


def mapped_attention_reference(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_map_bhns: Tensor,
    mapping_bts: Tensor,
    weight_b: Tensor,
) -> Tensor:
    """`mapped_attention` by its definition: (weight * A_src M^T + (1 - weight) * A) V."""
    weight_b111 = weight_b.view(-1, 1, 1, 1)
    injected_map = source_map_bhns @ mapping_bts.unsqueeze(1).transpose(-1, -2)
    own_map = attention_map_reference(q_bhnd, k_bhtd)
    return (weight_b111 * injected_map + (1 - weight_b111) * own_map) @ v_bhtd
