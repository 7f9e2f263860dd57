"""The engine without each of its ideas: it computes the same, and what that says."""

from __future__ import annotations

import pytest
import torch
from tiny import assert_near
from torch.utils._python_dispatch import TorchDispatchMode

from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_bench.causes import (
    COMPILED,
    NETWORKS,
    WHOLE,
    causes_of,
    pytorch_kernels,
    time_variants,
    variants,
)


class Operations(TorchDispatchMode):
    """The names of the libraries whose operations are called."""

    def __init__(self):
        super().__init__()
        self.libraries = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.libraries.add(func.namespace)
        return func(*args, **(kwargs or {}))


def test_pytorchs_kernels_are_pytorchs():
    model = LatentDiffusion.load("embedded", device="cpu", attention="cpp")
    inputs = torch.randn(2, *model.latent_shape), torch.tensor([10, 10])
    text = model.encode_prompts(["a", "b"])
    with Operations() as ours:
        model.predict(*inputs, text)
    with pytorch_kernels(), Operations() as pytorchs:
        model.predict(*inputs, text)
    assert pytorchs.libraries == {"aten"} and len(ours.libraries) > 1, ours.libraries


@pytest.fixture
def engines(tiny, edited_jobs):
    (classifier,) = {job.losses[0].classifier for job in edited_jobs}
    return variants(tiny.model, classifier, 2, 4, compiled=False)


def test_the_engine_without_an_idea_computes_the_same(tiny, engines, edited_jobs):
    """But for the one whose networks are left out; and afterwards all is as before."""
    decodes = []
    hook = tiny.model.vae.decoder.register_forward_hook(lambda *_: decodes.append(1))
    expected = list(engines[WHOLE].engine.run(edited_jobs))
    whole = len(decodes)
    processors = {name: p.impl for name, p in tiny.model.unet.attn_processors.items()}
    for name, variant in engines.items():
        decodes.clear()
        with variant.changed():
            results = list(variant.engine.run(edited_jobs))
        same = [r.history[-1] == pytest.approx(e.history[-1], rel=1e-6)
                for r, e in zip(results, expected, strict=True)]  # fmt: skip
        assert all(same) == (name != NETWORKS), name
        if name != NETWORKS:
            assert_near(results[0].image, expected[0].image, 1e-6)
            # Two evaluations of two jobs.
            assert len(decodes) == whole + (4 if name == "shared decode" else 0)
    hook.remove()
    assert {name: p.impl for name, p in tiny.model.unet.attn_processors.items()} == processors


def test_every_variant_is_timed_in_every_repeat(engines, edited_jobs):
    seconds = time_variants(engines, edited_jobs, 2)
    causes, outside = causes_of(seconds)
    assert set(causes) == {
        "batching", "no recompute", "injection without maps", "shared decode", "kernels"
    }  # fmt: skip
    assert all(len(each) == 2 and min(each) > 0 for each in seconds.values()) and outside > 0


def test_causes_by_hand():
    seconds = {
        WHOLE: [2.0, 1.0, 4.0], "kernels": [3.0, 6.0, 4.0], NETWORKS: [0.1, 0.1, 0.2],
        COMPILED: [1.0, 2.0, 0.5],
    }  # fmt: skip
    causes, outside = causes_of(seconds)
    assert set(causes) == {"kernels", COMPILED} and outside == pytest.approx(0.05)
    kernels, compiled = causes["kernels"], causes[COMPILED]
    assert (kernels.factor, kernels.low, kernels.high) == (2.0, 0.75, 6.0)
    assert (compiled.factor, compiled.low, compiled.high) == (2.0, 0.5, 8.0)
