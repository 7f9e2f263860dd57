"""Attention, and prompt-to-prompt attention that never stores the map of the edited prompt.

Prompt-to-prompt replaces the attention map A of the edited prompt by A' = A_src M^T: what a query
of the source image paid to a source word goes to the target words that the mapping M gives it to.
Because

    A' V = softmax(Q_src K_src^T / sqrt(d)) (M^T V),

injection is ordinary attention with the SOURCE queries and keys and with mapped values. No map over
the target tokens exists, forward or backward, and any fused attention serves.

Shapes: B samples, H heads, N image tokens, T target (key) tokens, S source tokens, d head size.
Everything is differentiable in every floating-point argument by autograd, on any device and dtype
that torch's scaled_dot_product_attention takes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(q_bhnd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V -> (B,H,N,d)."""
    return scaled_dot_product_attention(q_bhnd, k_bhtd, v_bhtd)


def injected_attention(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_q_bhnd: Tensor,
    source_k_bhsd: Tensor,
    mapping_bts: Tensor,
    weight_b: Tensor,
) -> Tensor:
    """weight * softmax(Q_src K_src^T / sqrt(d)) (M^T V) + (1 - weight) * attention(Q, K, V).

    mapping: M, each column (source token) summing to 1 over the target tokens. weight: one number
    in [0,1] per sample; 0 is plain attention, 1 full injection. Both are cast to the dtype of V.
    Returns (B,H,N,d). (Hertz et al., Prompt-to-Prompt, arXiv 2208.01626, section 3.2.)
    """
    injected = scaled_dot_product_attention(
        source_q_bhnd, source_k_bhsd, _map_values(v_bhtd, mapping_bts)
    )
    return _blend(injected, attention(q_bhnd, k_bhtd, v_bhtd), weight_b)


def mapped_attention(
    q_bhnd: Tensor,
    k_bhtd: Tensor,
    v_bhtd: Tensor,
    source_map_bhns: Tensor,
    mapping_bts: Tensor,
    weight_b: Tensor,
) -> Tensor:
    """`injected_attention` from a stored source map A_src (rows sum to 1) -> (B,H,N,d).

    For where the map is smaller than the source queries, S < d.
    """
    injected = source_map_bhns.to(v_bhtd.dtype) @ _map_values(v_bhtd, mapping_bts)
    return _blend(injected, attention(q_bhnd, k_bhtd, v_bhtd), weight_b)


def attention_map_reference(q_bhnd: Tensor, k_bhtd: Tensor) -> Tensor:
    """The attention map A = softmax(Q K^T / sqrt(d)) -> (B,H,N,T)."""
    return torch.softmax(q_bhnd @ k_bhtd.transpose(-1, -2) / math.sqrt(q_bhnd.shape[-1]), dim=-1)


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


def _map_values(v_bhtd: Tensor, mapping_bts: Tensor) -> Tensor:
    """M^T V: the value each source token stands for -> (B,H,S,d)."""
    batch, target_tokens = v_bhtd.shape[0], v_bhtd.shape[2]
    assert mapping_bts.shape[:2] == (batch, target_tokens), (
        f"mapping must be (samples, target tokens, source tokens) = ({batch}, {target_tokens}, S), "
        f"got {tuple(mapping_bts.shape)}"
    )
    return mapping_bts.to(v_bhtd.dtype).transpose(1, 2).unsqueeze(1) @ v_bhtd


def _blend(injected_bhnd: Tensor, own_bhnd: Tensor, weight_b: Tensor) -> Tensor:
    assert weight_b.shape == own_bhnd.shape[:1], (
        f"weight must be one number per sample, ({own_bhnd.shape[0]},), got {tuple(weight_b.shape)}"
    )
    weight_b111 = weight_b.to(own_bhnd.dtype).view(-1, 1, 1, 1)
    return weight_b111 * injected_bhnd + (1 - weight_b111) * own_bhnd
