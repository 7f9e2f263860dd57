"""The U-Net's attention layers: what they compute, what they store, what they take over.

One processor serves every layer. A U-Net call may carry an ``AttentionControl``:

- ``store`` collects queries and keys of the cross-attention layers (to inject them later, or to
  make foreground masks), and of the small self-attention layers where that is asked for;
- ``injected`` makes the conditional samples attend as a source prompt did (prompt-to-prompt,
  Hertz et al. 2022) without materialising a map: A_src M^T V = softmax(Q_src K_src^T) (M^T V);
- ``injected_self`` does so in self-attention, where every position stands for itself: A_src V.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fastdigin.errors import UserError
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


@dataclass(frozen=True)
class InjectedSelfAttention:
    """Source self-attention for the B conditional samples of one U-Net call.

    layers: layer name -> SourceAttention with a leading batch dimension B; other layers are left
        alone. weights: layer name -> (B,) in [0, 1], because not every sample has every layer.
    """

    layers: Mapping[str, SourceAttention]
    weights: Mapping[str, Tensor]


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

    def injects(self, layer: str, is_cross: bool) -> bool:
        """Whether a layer attends as the source did."""
        if is_cross:
            return self.injected is not None
        return self.injected_self is not None and layer in self.injected_self.layers


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
        if control is not None and control.injects(self.layer, self.is_cross):
            out_bhnd = self._attend_like_the_source(q_bhnd, k_bhld, v_bhld, control)
        else:
            out_bhnd = attention(q_bhnd, k_bhld, v_bhld, self.impl)
        return attn.to_out[0](out_bhnd.transpose(1, 2).flatten(-2))

    def _attend_like_the_source(self, q, k, v, control: AttentionControl) -> Tensor:
        """Injection concerns the conditional samples, which come last in the batch."""
        injected = control.injected if self.is_cross else control.injected_self
        source = injected.layers[self.layer]
        unconditional = len(q) - len(source.tensor)
        parts = [attention(q[:unconditional], k[:unconditional], v[:unconditional], self.impl)]
        q, k, v = q[unconditional:], k[unconditional:], v[unconditional:]
        if not self.is_cross:
            parts.append(self._self_injected(q, k, v, source, injected.weights[self.layer]))
        elif source.keys is None:
            parts.append(
                mapped_attention(
                    q, k, v, source.tensor, injected.mapping, injected.weight, self.impl
                )
            )
        else:
            parts.append(
                injected_attention(
                    q, k, v, source.tensor, source.keys, injected.mapping, injected.weight,
                    self.impl,
                )
            )  # fmt: skip
        return torch.cat(parts) if unconditional else parts[1]

    def _self_injected(self, q, k, v, source: SourceAttention, weight: Tensor) -> Tensor:
        if source.keys is None:
            of_source = source.tensor @ v
        else:
            of_source = attention(source.tensor, source.keys, v, self.impl)
        weight = weight.to(v.dtype).view(-1, 1, 1, 1)
        return weight * of_source + (1 - weight) * attention(q, k, v, self.impl)


def is_cross(layer: str) -> bool:
    """Whether it is a cross-attention layer, by diffusers' names; the others are self-attention."""
    return layer.endswith("attn2")


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)): (..., N, d) and (..., L, d) to (..., N, L)."""
    return torch.softmax(queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5, dim=-1)


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
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"attention must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    weight = next(unet.parameters())
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    for size in sorted({layer.inner_dim // layer.heads for layer in layers}):
        reason = unavailable(impl, weight.device, weight.dtype, size)
        if reason is not None:
            raise UserError(
                f"attention {impl!r} cannot serve this model: {reason}; choose another, or 'auto'"
            )
