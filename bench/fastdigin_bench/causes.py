"""Where the engine's speed comes from: its time without each idea, over its time with all of them.

Each variant takes one update and one evaluation of the same edited jobs, the variants in turns. The
factors need not multiply to the whole ratio: the ideas help each other (without recomputing, there
is more for a kernel to win), and the plain loop also lacks things that no variant takes out, such
as inversion in batches.

    batching                 one job after the other
    no recompute             no step keeps its graph
    injection without maps   cross-attention writes its maps out, in all steps
    shared decode            one more decode for the picture of the history
    kernels                  PyTorch's own attention, group norm, SiLU, GEGLU, 3x3 convolution
    compile                  steps run as they are written; only where they would be compiled

The other variants are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastdigin.engine import batch
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result
from fastdigin.engine.judging import Prediction
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_bench.text_jobs import run_all
from fastdigin_bench.timing import Ratio
from fastdigin_kernels.common import choice

WHOLE, NETWORKS, COMPILED = "whole", "networks", "compile"

Variants = dict[str, Callable[[], object]]


def causes_of(seconds: Mapping[str, Sequence[float]]) -> tuple[dict[str, Ratio], float]:
    """How many times slower the engine is without each idea; the share outside of networks.

    seconds: of each variant's repeats. The share is the time of a run whose U-Net, decoder and
    classifier are a few element-wise operations, whose time it includes, over that of the whole
    engine.
    """
    whole = seconds[WHOLE]
    causes = {
        name: Ratio.of(whole, taken) if name == COMPILED else Ratio.of(taken, whole)
        for name, taken in seconds.items()
        if name not in (WHOLE, NETWORKS)
    }
    return causes, median(seconds[NETWORKS]) / median(whole)


def variants(
    model: LatentDiffusion, classifier: Classifier, jobs: Sequence[Job], slots: int, compiled: bool
) -> Variants:
    """What runs the jobs: the whole engine, and the engine without each idea.

    compiled: also with compiled steps.
    """

    def variant(changed: Callable[[], AbstractContextManager] = nullcontext, **other: Any):
        kept = jobs[0].settings.steps
        engine = Engine(model, **{"slots": slots, "kept_steps": kept, "compile": "off"} | other)

        def run() -> list[Result]:
            with changed():
                return run_all(engine, jobs)

        return run

    found = {
        WHOLE: variant(),
        "batching": variant(slots=1),
        "no recompute": variant(kept_steps=0),
        "injection without maps": variant(lambda: written_maps(model)),
        "shared decode": variant(separate_decode),
        "kernels": variant(pytorch_kernels),
        NETWORKS: variant(lambda: no_networks(model, classifier)),
    }
    if compiled:
        found[COMPILED] = variant(compile="on")
    return found


@contextmanager
def separate_decode() -> Iterator[None]:
    """Decodes the last x0 once more for the history, as the plain loop does."""
    judge = batch.judge

    def decode_twice(
        model: LatentDiffusion, predictions: Sequence[Prediction], *others: Any
    ) -> list[Tensor]:
        with torch.no_grad():
            for each in predictions:
                if each.last:
                    model.decode(each.x0_chw[None])
        return judge(model, predictions, *others)

    with patch.object(batch, "judge", decode_twice):
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
    """PyTorch's own attention, group norm, SiLU, GEGLU and 3x3 convolution while it lasts."""
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
