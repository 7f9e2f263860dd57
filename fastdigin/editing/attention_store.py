"""How the source prompt attended along its own trajectory: for injection and for masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.editing.inversion import Inversion
from fastdigin.editing.schedules import Schedule, schedule_weights, steps_reached
from fastdigin.engine.batch import padded
from fastdigin.engine.job import Injection
from fastdigin.models.attention import AttentionControl, SourceAttention, attention_map
from fastdigin.models.diffusion import LatentDiffusion

MASK_RESOLUTION = 16  # the layers whose maps locate objects best (Hertz et al. 2022)


@dataclass(frozen=True)
class AttentionStore:
    """The attention of one source image (prompt-to-prompt, Hertz et al. 2022).

    Args:
        layers: cross-attention layer -> SourceAttention over the first steps, for injection.
        maps: (L, h, w), attention to each token, averaged over heads, the layers nearest to 16x16
            and the first half of the steps.
    """

    layers: dict[str, SourceAttention]
    maps: Tensor

    def injection(self, mapping: Tensor, schedule: Schedule, steps: int) -> Injection:
        """Injects as the schedule says, which must not reach further than what was stored."""
        return Injection(self.layers, mapping, schedule_weights(schedule, steps))


@torch.no_grad()
def store_attention(
    model: LatentDiffusion,
    inversions: Sequence[Inversion],
    injected: Sequence[Schedule],
    *,
    batch: int,
) -> list[AttentionStore]:
    """Replays the conditional branch of each source trajectory and stores its attention.

    Args:
        injected: the schedules by which it may be injected later; none of them stores maps only.
        batch: how many inversions are replayed at a time.
    """
    stores: list[AttentionStore] = []
    for start in range(0, len(inversions), batch):
        part = list(inversions[start : start + batch])
        stores += _store_batch(model, padded(part, batch), injected)[: len(part)]
    return stores


def _store_batch(model, inversions, injected) -> list[AttentionStore]:
    steps = len(inversions[0].trajectory) - 1
    timesteps = model.ddim_table(steps).timesteps.to(model.device)
    kept_steps, half = steps_reached(injected, steps), (steps + 1) // 2
    trajectory = torch.stack([x.trajectory for x in inversions])
    cond = torch.stack([x.conditioning for x in inversions])
    vectors = [x.vector for x in inversions]
    vector = None if vectors[0] is None else torch.stack(vectors)

    kept: dict[str, list[SourceAttention]] = {}
    maps_sum, count = 0.0, 0
    for i in range(max(kept_steps, half)):
        store: dict[str, tuple[Tensor, Tensor]] = {}
        t = timesteps[i].expand(len(cond))
        model.predict(trajectory[:, i], t, cond, AttentionControl(store=store), vector)
        if i < kept_steps:
            for layer, (queries, keys) in store.items():
                kept.setdefault(layer, []).append(SourceAttention.smallest(queries, keys))
        if i < half:
            for layer in nearest_layers({name: q.shape[-2] for name, (q, _) in store.items()}):
                per_head = attention_map(*(x.float() for x in store[layer]))
                maps_sum, count = maps_sum + per_head.mean(dim=1), count + 1
    maps = (maps_sum / count).transpose(1, 2)  # (B, L, N)
    side = round(maps.shape[-1] ** 0.5)
    return [
        AttentionStore(
            {layer: _of_sample(rows, b) for layer, rows in kept.items()},
            maps[b].unflatten(-1, (side, side)),
        )
        for b in range(len(inversions))
    ]


def nearest_layers(tokens: dict[str, int]) -> list[str]:
    """The layers whose side is nearest to 16 (on a tie, the larger), given their N = side**2."""
    side = {name: n**0.5 for name, n in tokens.items()}
    best = min(side.values(), key=lambda s: (abs(s - MASK_RESOLUTION), -s))
    return [name for name, s in side.items() if s == best]


def _of_sample(rows: list[SourceAttention], b: int) -> SourceAttention:
    """One sample's steps stacked; its keys depend on the text only, so one set serves all."""
    tensor = torch.stack([row.tensor[b] for row in rows])
    return SourceAttention(tensor, None if rows[0].keys is None else rows[0].keys[b].clone())
