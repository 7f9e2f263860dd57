"""Where the engine's speed comes from: its time without each idea, over its time with all of them.

Each variant takes one update and one evaluation of the same edited jobs, the variants in turns. The
factors need not multiply to the whole ratio: the ideas help each other (without recomputing, there
is more for a kernel to win), and the plain loop also lacks things that no variant takes out, such
as inversion in batches.

    batching                 one job after the other
    no recompute             no step keeps its graph
    injection without maps   cross-attention writes its maps out, in all steps
    shared decode            one more decode for the picture of the history
    kernels                  PyTorch's own attention, group norm, SiLU and GEGLU
    compile                  steps run as they are written; only where they would be compiled

The other variants are not compiled.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastdigin.engine.batch import Batch
from fastdigin.engine.decoding import decode_one
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.slot import Slot
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_bench.output import say
from fastdigin_bench.text_jobs import run_all
from fastdigin_kernels.common import choice

WHOLE, NETWORKS, COMPILED = "whole", "networks", "compile"


@dataclass(frozen=True)
class Cause:
    """How many times slower the engine is without an idea; low and high are of the extremes."""

    factor: float
    low: float
    high: float


@dataclass(frozen=True)
class Variant:
    """engine: what runs the jobs. changed: holds while it does."""

    engine: Engine
    changed: Callable[[], AbstractContextManager] = nullcontext


def causes_of(seconds: Mapping[str, Sequence[float]]) -> tuple[dict[str, Cause], float]:
    """What each idea is worth, and the share of time spent outside of networks and decoder.

    seconds: as ``time_variants`` gives them. The share is the time of a run whose U-Net, decoder
    and classifier are a few element-wise operations, whose time it includes, over that of the
    whole engine.
    """
    whole = seconds[WHOLE]
    causes = {
        name: _cause(whole, taken) if name == COMPILED else _cause(taken, whole)
        for name, taken in seconds.items()
        if name not in (WHOLE, NETWORKS)
    }
    return causes, statistics.median(seconds[NETWORKS]) / statistics.median(whole)


def _cause(without: Sequence[float], with_it: Sequence[float]) -> Cause:
    return Cause(
        statistics.median(without) / statistics.median(with_it),
        min(without) / max(with_it),
        max(without) / min(with_it),
    )


def variants(
    model: LatentDiffusion, classifier: Classifier, slots: int, steps: int, compiled: bool
) -> dict[str, Variant]:
    """The whole engine, and the engine without each idea. compiled: also with compiled steps."""

    def engine(**other: Any) -> Engine:
        return Engine(model, **({"slots": slots, "kept_steps": steps, "compile": "off"} | other))

    whole = engine()
    found = {
        WHOLE: Variant(whole),
        "batching": Variant(engine(slots=1)),
        "no recompute": Variant(engine(kept_steps=0)),
        "injection without maps": Variant(whole, lambda: written_maps(model)),
        "shared decode": Variant(whole, separate_decode),
        "kernels": Variant(whole, pytorch_kernels),
        NETWORKS: Variant(whole, lambda: no_networks(model, classifier)),
    }
    if compiled:
        found[COMPILED] = Variant(engine(compile="on"))
    return found


def time_variants(
    variants: dict[str, Variant], jobs: Sequence[Job], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat, after a run that nobody times: of all jobs where steps compile.

    Each repeat begins with another variant: what runs after what was seen to cost some percent.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants.items())
    for repeat in range(repeats):
        for name, variant in order[repeat % len(order) :] + order[: repeat % len(order)]:
            with variant.changed():
                if not found[name]:
                    run_all(variant.engine, jobs if name == COMPILED else jobs[:1])
                start = time.perf_counter()
                run_all(variant.engine, jobs)
                found[name].append(time.perf_counter() - start)
            say(f"{name}: {found[name][-1]:.2f} s")
    return found


@contextmanager
def separate_decode() -> Iterator[None]:
    """Decodes the last x0 once more for the history, as the plain loop does."""
    losses = Batch.losses

    def decode_twice(batch: Batch, slot: Slot, x0s: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            decode_one(slot.model, x0s[-1])
        return losses(batch, slot, x0s)

    with patch.object(Batch, "losses", decode_twice):
        yield


@contextmanager
def written_maps(model: LatentDiffusion) -> Iterator[None]:
    """Cross-attention by the reference, which writes the map of every head out."""
    cross = [p for p in model.unet.attn_processors.values() if p.is_cross]
    for processor in cross:
        processor.impl = "reference"
    try:
        yield
    finally:
        for processor in cross:
            processor.impl = model.attention


@contextmanager
def pytorch_kernels() -> Iterator[None]:
    """PyTorch's own attention, group norm, SiLU and GEGLU while it lasts."""
    with patch.object(choice, "choose", lambda operation, *given: choice.own(operation)):
        yield


@contextmanager
def no_networks(model: LatentDiffusion, classifier: Classifier) -> Iterator[None]:
    """U-Net, decoder and classifier cost next to nothing; shapes and gradients are as before."""
    pixels = model.image_size // model.latent_shape[-1]

    def predict(z_bchw: Tensor, t_b: Tensor, context_bld: Tensor, *others) -> Tensor:
        return 0.5 * z_bchw + context_bld.mean(dim=(1, 2))[:, None, None, None]

    def decode(z_bchw: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(z_bchw[:, :3], scale_factor=pixels).sigmoid()

    def logits(images_bchw: Tensor, *, prepared: bool = False) -> Tensor:
        return images_bchw.flatten(1)[:, : len(classifier.classes)]

    with (
        patch.object(model, "predict", predict),
        patch.object(model, "decode", decode),
        patch.object(classifier, "logits", logits),
    ):
        yield
