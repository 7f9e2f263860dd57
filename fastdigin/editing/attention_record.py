"""How the source prompt attended along its own trajectory: for injection and for masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdigin.editing.inversion import Inversion
from fastdigin.engine.batch import padded
from fastdigin.engine.job import Injection
from fastdigin.models.attention import AttentionControl, SourceAttention, attention_map
from fastdigin.models.diffusion import LatentDiffusion

MASK_RESOLUTION = 16  # the layers whose maps locate objects best (Hertz et al. 2022)


@dataclass(frozen=True)
class AttentionRecord:
    """Cross-attention of one source image.

    layers: layer name -> SourceAttention over the first recorded steps (for injection).
    maps: (L, h, w), attention to each token, averaged over heads, the layers nearest to 16x16
        and the first half of the steps.
    """

    layers: dict[str, SourceAttention]
    maps: Tensor

    def injection(self, mapping: Tensor, fraction: float, steps: int) -> Injection:
        """Injects for the first ``fraction`` of the steps; it must have been recorded that far."""
        weights = tuple(float(i / steps < fraction) for i in range(steps))
        return Injection(self.layers, mapping, weights)


@torch.no_grad()
def record_attention(
    model: LatentDiffusion, inversions: Sequence[Inversion], injected_fraction: float, *, batch: int
) -> list[AttentionRecord]:
    """Replays the conditional branch of each source trajectory and records its attention.

    injected_fraction: of the steps for which injection shall be possible.
    """
    records: list[AttentionRecord] = []
    for start in range(0, len(inversions), batch):
        part = list(inversions[start : start + batch])
        records += _record_batch(model, padded(part, batch), injected_fraction)[: len(part)]
    return records


def _record_batch(model, inversions, injected_fraction) -> list[AttentionRecord]:
    steps = len(inversions[0].trajectory) - 1
    timesteps = model.ddim_table(steps).timesteps.to(model.device)
    injected = sum(i / steps < injected_fraction for i in range(steps))
    half = (steps + 1) // 2
    trajectory = torch.stack([x.trajectory for x in inversions])
    cond = torch.stack([x.conditioning for x in inversions])
    vectors = [x.vector for x in inversions]
    vector = None if vectors[0] is None else torch.stack(vectors)

    kept: dict[str, list[SourceAttention]] = {}
    maps_sum, count = 0.0, 0
    for i in range(max(injected, half)):
        record: dict[str, tuple[Tensor, Tensor]] = {}
        t = timesteps[i].expand(len(cond))
        model.predict(trajectory[:, i], t, cond, AttentionControl(record=record), vector)
        if i < injected:
            for layer, (queries, keys) in record.items():
                kept.setdefault(layer, []).append(SourceAttention.smallest(queries, keys))
        if i < half:
            for layer in nearest_layers({name: q.shape[-2] for name, (q, _) in record.items()}):
                per_head = attention_map(*(x.float() for x in record[layer]))
                maps_sum, count = maps_sum + per_head.mean(dim=1), count + 1
    maps = (maps_sum / count).transpose(1, 2)  # (B, L, N)
    side = round(maps.shape[-1] ** 0.5)
    return [
        AttentionRecord(
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
