"""The U-Net's attention layers: what they compute, what they store, what they take over.

One processor serves every layer. A U-Net call may carry an ``AttentionControl``:

- ``store`` collects queries and keys of the cross-attention layers (to inject them later, or to
  make foreground masks), and of the small self-attention layers where that is asked for;
- ``injected`` makes the conditional samples attend as a source prompt did (prompt-to-prompt,
  Hertz et al. 2022) without materialising a map: A_src M^T V = softmax(Q_src K_src^T) (M^T V);
- ``injected_self`` does so in self-attention, where every position stands for itself: A_src V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fastdigin.errors import UserError, check_choice
from fastdigin_kernels.attention import (
    IMPLEMENTATIONS,
    attention,
    injected_attention,
    mapped_attention,
    unavailable,
)


@dataclass(frozen=True)
class SourceAttention:
    """How one attention layer attended for the source prompt.

    Of queries and map, whichever is smaller is kept. With ``keys`` (..., H, Ls, d), ``tensor``
    holds queries (..., H, N, d); without, it holds the map (..., H, N, Ls). In self-attention
    Ls is N.
    """

    tensor: Tensor
    keys: Tensor | None

    @classmethod
    def smallest(
        cls, queries: Tensor, keys: Tensor, *, keys_are_shared: bool = True
    ) -> SourceAttention:
        """Keeps the queries where they take no more room than the map.

        keys_are_shared: one set serves all steps, as in cross-attention, and counts nothing.
        """
        sets = 1 if keys_are_shared else 2
        if sets * queries.shape[-1] <= keys.shape[-2]:
            return cls(queries, keys)
        return cls(attention_map(queries, keys), None)

    def at_step(self, i: int, *, keys_are_shared: bool = True) -> SourceAttention:
        """Of several steps, stacked, the i-th."""
        keys = self.keys if self.keys is None or keys_are_shared else self.keys[i]
        return SourceAttention(self.tensor[i], keys)


@dataclass(frozen=True)
class InjectedAttention:
    """Source attention for the B conditional samples of one U-Net call.

    layers: layer name -> SourceAttention with a leading batch dimension B.
    mapping: (B, L, Ls), target tokens x source tokens, columns summing to 1.
    weight: (B,) in [0, 1]; 0 leaves a sample's own attention exactly as it is.
    """

    layers: Mapping[str, SourceAttention]
    mapping: Tensor
    weight: Tensor

    def function(self, layer: str) -> Callable[..., Tensor]:
        """Of a layer's queries, keys, values and ``impl``: attention as the source's."""
        return _as_the_source(self.layers[layer], self.mapping, self.weight)


@dataclass(frozen=True)
class InjectedSelfAttention:
    """Source self-attention for the B conditional samples of one U-Net call.

    layers: layer name -> SourceAttention with a leading batch dimension B; other layers are left
        alone. weights: layer name -> (B,) in [0, 1], because not every sample has every layer.
    """

    layers: Mapping[str, SourceAttention]
    weights: Mapping[str, Tensor]

    def function(self, layer: str) -> Callable[..., Tensor]:
        """Of a layer's queries, keys, values and ``impl``: attention as the source's."""
        return _as_the_source(self.layers[layer], None, self.weights[layer])


@dataclass(frozen=True)
class AttentionControl:
    """What one U-Net call stores (layer -> (queries, keys), filled by the call) and injects.

    stored_queries: self-attention layers of at most so many queries are stored as well.
    """

    store: dict[str, tuple[Tensor, Tensor]] | None = None
    stored_queries: int = 0
    injected: InjectedAttention | None = None
    injected_self: InjectedSelfAttention | None = None

    def stores(self, is_cross: bool, queries: int) -> bool:
        """Whether a layer's queries and keys are wanted."""
        return self.store is not None and (is_cross or queries <= self.stored_queries)

    def injected_into(
        self, layer: str, is_cross: bool
    ) -> InjectedAttention | InjectedSelfAttention | None:
        """What makes a layer attend as the source did; None where it does not."""
        injected = self.injected if is_cross else self.injected_self
        return injected if injected is not None and layer in injected.layers else None


@dataclass
class AttentionProcessor:
    """A diffusers attention processor that knows its layer's name.

    impl: the implementation of attention, one of fastdigin_kernels.attention.IMPLEMENTATIONS.
    """

    layer: str
    impl: str = "auto"
    is_cross: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_cross = is_cross(self.layer)

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: AttentionControl | None = None,
    ) -> Tensor:
        assert attention_mask is None, "Stable Diffusion's layers are called without masks"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q_bhnd, k_bhld, v_bhld = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if control is not None and control.stores(self.is_cross, q_bhnd.shape[-2]):
            control.store[self.layer] = (q_bhnd.detach(), k_bhld.detach())
        injected = None if control is None else control.injected_into(self.layer, self.is_cross)
        if injected is None:
            out_bhnd = attention(q_bhnd, k_bhld, v_bhld, self.impl)
        else:  # it concerns the conditional samples, which come last in the batch
            first = len(q_bhnd) - len(injected.layers[self.layer].tensor)
            conditional = (x[first:] for x in (q_bhnd, k_bhld, v_bhld))
            out_bhnd = injected.function(self.layer)(*conditional, impl=self.impl)
            if first:
                others = (x[:first] for x in (q_bhnd, k_bhld, v_bhld))
                out_bhnd = torch.cat([attention(*others, self.impl), out_bhnd])
        return attn.to_out[0](out_bhnd.transpose(1, 2).flatten(-2))


def is_cross(layer: str) -> bool:
    """Whether it is a cross-attention layer, by diffusers' names; the others are self-attention."""
    return layer.endswith("attn2")


def _as_the_source(
    source: SourceAttention, mapping: Tensor | None, weight: Tensor
) -> Callable[..., Tensor]:
    if source.keys is None:
        return partial(
            mapped_attention, source_map_bhns=source.tensor, mapping_bts=mapping, weight_b=weight
        )
    return partial(
        injected_attention, source_q_bhnd=source.tensor, source_k_bhsd=source.keys,
        mapping_bts=mapping, weight_b=weight,
    )  # fmt: skip


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)): (..., N, d) and (..., L, d) to (..., N, L).

    The queries are scaled by a power of two before the product, which in fp16 could overflow, and
    by the rest after it: that changes no bit elsewhere.
    """
    size = queries.shape[-1]
    before = 2.0 ** -math.ceil(math.log2(size) / 2)
    scores = (queries * before) @ keys.transpose(-1, -2)
    return torch.softmax(scores * (size**-0.5 / before), dim=-1)


def install_processors(unet, impl: str = "auto") -> None:
    """Gives every attention layer of a diffusers U-Net our processor.

    Raises UserError if the named implementation cannot serve the network's layers where they are.
    """
    names = list(unet.attn_processors)
    _check_impl(unet, impl)
    unet.set_attn_processor(
        {name: AttentionProcessor(name.removesuffix(".processor"), impl) for name in names}
    )


def _check_impl(unet, impl: str) -> None:
    check_choice("attention", impl, IMPLEMENTATIONS)
    weight = next(unet.parameters())
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    for size in sorted({layer.inner_dim // layer.heads for layer in layers}):
        reason = unavailable(impl, weight.device, weight.dtype, size)
        if reason is not None:
            raise UserError(
                f"attention {impl!r} cannot serve this model: {reason}; choose another, or 'auto'"
            )
