"""What the kernels mean to a whole step: its time by kind of operation, and engine iterations.

Part of ``fastdigin bench kernels``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastdigin.engine.architectures import SD_1_4
from fastdigin.engine.engine import Engine
from fastdigin.engine.footprint import built
from fastdigin.errors import UserError
from fastdigin.models.attention import install_processors
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.models.frozen import freeze_aware
from fastdigin_bench.kernel_timing import time_in_turns
from fastdigin_bench.text_jobs import run_all, text_jobs

_PROFILED = {"embedded": 10, "sd-1.4": 3}  # steps
_KINDS = {
    "attention": ("attention",),
    "norms and activations": ("group_norm", "layer_norm", "silu", "gelu", "geglu"),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "aten::mm", "bmm"),
}
_SLOTS, _ITERATIONS = 8, 1
_TOLERANCE = 1e-3  # of losses after an update, in which Adam has amplified the last bits


def step_shares(name: str, impl: str) -> dict[str, float]:
    """Share of each kind of operation in the time of a U-Net call and its gradients, with seconds.

    name: "embedded" (batch of 16) or "sd-1.4" (random weights, 512 pixels, one guidance pair, 4 GB
    and up to minutes). impl: of attention.
    """
    torch.manual_seed(0)
    unet, latents, text = _embedded_step() if name == "embedded" else _sd_step()
    install_processors(unet, impl)
    latents.requires_grad_()
    text.requires_grad_()

    def step() -> None:
        out = unet(latents, torch.full((len(latents),), 500), text, return_dict=False)[0]
        torch.autograd.grad(out, (latents, text), torch.ones_like(out))

    step()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        for _ in range(_PROFILED[name]):
            step()
    return shares({event.key: event.self_cpu_time_total / 1e6 for event in measured.key_averages()})


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """{kind: share of the sum}, "other" included, and all seconds, from those of operations."""
    found = dict.fromkeys([*_KINDS, "other"], 0.0)
    for operation, taken in seconds.items():
        name = operation.lower()
        kinds = (kind for kind, parts in _KINDS.items() if any(part in name for part in parts))
        found[next(kinds, "other")] += taken
    total = sum(seconds.values())
    return {kind: round(taken / total, 3) for kind, taken in found.items()} | {
        "seconds": round(total, 3)
    }


def engine_ratio(impls: Sequence[str], seconds: float = 60.0) -> dict:
    """Seconds of an engine iteration with the embedded model, by implementation of attention.

    Eight jobs, twenty steps, in turns. The first is the baseline of ``ratio`` (the median of the
    rounds' ratios). UserError if the losses differ.
    """
    engines = {
        impl: Engine(LatentDiffusion.load(EMBEDDED, attention=impl), slots=_SLOTS, kept_steps=0)
        for impl in impls
    }
    base, *others = impls
    losses = {impl: losses_of(engine) for impl, engine in engines.items()}
    differences = {
        impl: ((losses[impl] - losses[base]) / losses[base]).abs().max().item() for impl in others
    }
    for impl, difference in differences.items():
        if not difference <= _TOLERANCE:
            raise UserError(
                f"losses by {impl!r} and {base!r} differ by {difference:.1e} of their size: speeds "
                "of different computations are not compared"
            )
    runs = {impl: partial(losses_of, engine) for impl, engine in engines.items()}
    taken = time_in_turns(runs, seconds, torch.device("cpu"))
    ratios = {
        impl: [b / s for b, s in zip(taken[base], taken[impl], strict=True)] for impl in others
    }
    return {
        "seconds": {
            impl: round(statistics.median(s) / (_ITERATIONS + 1), 3) for impl, s in taken.items()
        },
        "ratio": {impl: round(statistics.median(r), 3) for impl, r in ratios.items()},
        "ratio_range": {impl: [round(min(r), 3), round(max(r), 3)] for impl, r in ratios.items()},
        "loss_difference": max(differences.values()),
    }


class _Brightness:
    name, weight = "brightness", 1.0

    def __call__(self, candidate) -> Tensor:
        return candidate.image.square().mean()


def losses_of(engine: Engine) -> Tensor:
    """Of all iterations of some jobs."""
    jobs = text_jobs(engine.model, _Brightness(), _SLOTS, iterations=_ITERATIONS, last_steps=1)
    results = sorted(run_all(engine, jobs), key=lambda result: result.id)
    totals = [row["total"] for result in results for row in result.history]
    return torch.tensor(totals, dtype=torch.float64)


def _embedded_step():
    model = LatentDiffusion.load(EMBEDDED)
    text = torch.randn(2 * _SLOTS, model.text_length, model.text_width)
    return model.unet, torch.randn(2 * _SLOTS, *model.latent_shape), text


def _sd_step():
    unet = built(UNet2DConditionModel, SD_1_4.unet, torch.float32)
    unet.to(memory_format=torch.channels_last)
    freeze_aware(unet)
    text = torch.randn(2, SD_1_4.text_length, SD_1_4.unet["cross_attention_dim"])
    return unet, torch.randn(2, *SD_1_4.latent_shape(512)), text
