"""How the source prompt attended along its own trajectory: for injection and for masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.editing.inversion import Inversion
from fastdigin.editing.schedules import Schedule, schedule_weights, steps_reached
from fastdigin.engine.job import Injection, SelfInjection
from fastdigin.engine.steps import whole_blocks
from fastdigin.errors import UserError
from fastdigin.models.attention import AttentionControl, SourceAttention, attention_map, is_cross
from fastdigin.models.diffusion import LatentDiffusion

MASK_RESOLUTION = 16  # the layers whose maps locate objects best (Hertz et al. 2022)
SELF_QUERIES = MASK_RESOLUTION**2
"""Self-attention of more positions is left to the edit, as in prompt-to-prompt's self_replace."""
SHARE_FOR_SOURCES = 0.25
"""Of a GPU's free memory, so much may be filled with the attention of a batch of photos. What is
more waits in the host's memory for the steps that inject it: 2.1 GB a photo of SDXL at 1024 px."""


@dataclass(frozen=True)
class AttentionStore:
    """The attention of one source image (prompt-to-prompt, Hertz et al. 2022).

    Args:
        layers: layer -> SourceAttention over the first steps, for injection. All cross-attention
            layers and, where they were asked for, the small self-attention layers.
        maps: (L, h, w), attention to each token, averaged over heads, the layers nearest to 16x16
            and the first half of the steps.
    """

    layers: dict[str, SourceAttention]
    maps: Tensor

    def injection(self, mapping: Tensor, schedule: Schedule, steps: int) -> Injection:
        """Injects as the schedule says, which must not reach further than what was stored."""
        layers = {layer: x for layer, x in self.layers.items() if is_cross(layer)}
        return Injection(layers, mapping, schedule_weights(schedule, steps))

    def self_injection(self, schedule: Schedule, steps: int) -> SelfInjection:
        """The same for self-attention, which keeps the layout of the source."""
        layers = {layer: x for layer, x in self.layers.items() if not is_cross(layer)}
        return SelfInjection(layers, schedule_weights(schedule, steps))


@torch.no_grad()
def store_attention(
    model: LatentDiffusion,
    inversions: Sequence[Inversion],
    injected: Sequence[Schedule],
    self_injected: Sequence[Schedule] = (),
    *,
    batch: int,
    self_queries: int = SELF_QUERIES,
) -> list[AttentionStore]:
    """Replays the conditional branch of each source trajectory and stores its attention.

    Args:
        injected: the schedules by which it may be injected later; none of them stores maps only.
        self_injected: likewise for self-attention.
        batch: how many inversions are replayed at a time.
        self_queries: the most positions of a self-attention layer that is stored, 16 x 16 in
            prompt-to-prompt.

    Raises:
        UserError: no self-attention layer is that small.
    """
    stores: list[AttentionStore] = []
    limit = _checked_limit(model, self_queries) if self_injected else 0
    for start in range(0, len(inversions), batch):
        part = list(inversions[start : start + batch])
        rows = whole_blocks(part, batch)
        stores += _store_batch(model, rows, injected, self_injected, limit)[: len(part)]
    return stores


def _checked_limit(model: LatentDiffusion, self_queries: int) -> int:
    shapes = model.attention_shapes()
    smallest = min(queries for layer, (_, queries) in shapes.items() if not is_cross(layer))
    if smallest > self_queries:
        raise UserError(
            f"self_queries must be at least {smallest}, the smallest self-attention layer of model "
            f"{model.name!r}, got {self_queries}"
        )
    return self_queries


def _store_batch(model, inversions, injected, self_injected, limit) -> list[AttentionStore]:
    steps = len(inversions[0].trajectory) - 1
    timesteps = model.ddim_table(steps).timesteps.to(model.device)
    reached, self_reached = (steps_reached(x, steps) for x in (injected, self_injected))
    half = (steps + 1) // 2
    trajectory = torch.stack([x.trajectory for x in inversions])
    cond = torch.stack([x.conditioning for x in inversions])
    vectors = [x.vector for x in inversions]
    vector = None if vectors[0] is None else torch.stack(vectors)

    kept: dict[str, list[SourceAttention]] = {}
    maps_sum, count = 0.0, 0
    device, on_host = hardware.of(model.device), False
    for i in range(max(reached, self_reached, half)):
        store: dict[str, tuple[Tensor, Tensor]] = {}
        control = AttentionControl(store=store, stored_queries=limit)
        t = timesteps[i].expand(len(cond))
        model.predict(trajectory[:, i], t, cond, control, vector)
        for layer, (queries, keys) in store.items():
            if i < (reached if is_cross(layer) else self_reached):
                source = SourceAttention.smallest(queries, keys, keys_are_shared=is_cross(layer))
                kept.setdefault(layer, []).append(_moved(source, Tensor.cpu) if on_host else source)
        if i == 0 and device.is_gpu:
            needed = max(reached, self_reached) * _bytes(kept)
            on_host = needed > SHARE_FOR_SOURCES * device.free_memory()
        if i < half:
            tokens = {layer: q.shape[-2] for layer, (q, _) in store.items() if is_cross(layer)}
            for layer in nearest_layers(tokens):
                per_head = attention_map(*(x.float() for x in store[layer]))
                maps_sum, count = maps_sum + per_head.mean(dim=1), count + 1
    maps = (maps_sum / count).transpose(1, 2)  # (B, L, N)
    side = round(maps.shape[-1] ** 0.5)
    return [
        AttentionStore(
            {
                layer: _of_sample(layer, rows, b, device.to_host if on_host else lambda x: x)
                for layer, rows in kept.items()
            },
            maps[b].unflatten(-1, (side, side)),
        )
        for b in range(len(inversions))
    ]


def nearest_layers(tokens: dict[str, int]) -> list[str]:
    """The layers whose side is nearest to 16 (on a tie, the larger), given their N = side**2."""
    side = {name: n**0.5 for name, n in tokens.items()}
    best = min(side.values(), key=lambda s: (abs(s - MASK_RESOLUTION), -s))
    return [name for name, s in side.items() if s == best]


def _of_sample(
    layer: str, rows: list[SourceAttention], b: int, place: Callable[[Tensor], Tensor]
) -> SourceAttention:
    """One sample's steps stacked; cross-attention's keys depend on the text only: one set."""
    device = rows[-1].tensor.device  # of all but perhaps the first
    tensor = place(torch.stack([row.tensor[b].to(device) for row in rows]))
    if rows[0].keys is None:
        return SourceAttention(tensor, None)
    if is_cross(layer):
        return SourceAttention(tensor, place(rows[0].keys[b].clone()))
    return SourceAttention(tensor, place(torch.stack([row.keys[b].to(device) for row in rows])))


def _moved(source: SourceAttention, move: Callable[[Tensor], Tensor]) -> SourceAttention:
    return SourceAttention(move(source.tensor), None if source.keys is None else move(source.keys))


def _bytes(kept: Mapping[str, Sequence[SourceAttention]]) -> int:
    sources = [source for rows in kept.values() for source in rows]
    return sum(x.nbytes for s in sources for x in (s.tensor, s.keys) if x is not None)
