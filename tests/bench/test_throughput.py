"""fastdigin bench throughput: its line of JSON, its refusals, and the engine without each idea."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from tiny import (
    IMAGE_SHAPE,
    assert_near,
    build_classifier,
    build_tiny,
    make_injection,
    make_job,
    make_source,
    uniform,
)

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Settings
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.tasks.counterfactual import CounterfactualSettings
from fastdigin.tasks.inputs import ImageInput
from fastdigin_bench import processes, throughput
from fastdigin_bench.causes import COMPILED, NETWORKS, WHOLE, find_causes, pytorch_kernels, variants
from fastdigin_bench.equivalents import forward_equivalents
from fastdigin_bench.precision import gradient_cosines
from fastdigin_kernels.common import fused

KEYS = (
    "jobs", "engine_images_per_min", "plain_images_per_min", "ratio", "ratio_low", "ratio_high",
    "gradient_agreement", "final_loss_ratio", "forward_equivalents_per_step", "slot_occupancy",
    "recompiles",
)  # fmt: skip


@pytest.fixture
def small(tiny, monkeypatch):
    """Three photos on the tiny model, and little to do for each."""
    settings = CounterfactualSettings(
        Settings(steps=4, iterations=1), null_text_steps=1, injection_fractions=(0.5,),
        blending_fractions=(0.0,), cutouts=Cutouts(2),
    )  # fmt: skip
    items = [
        ImageInput(f"p{n}", uniform(*IMAGE_SHAPE, seed=n), "a red sneaker", "sneaker", "boot")
        for n in range(3)
    ]
    monkeypatch.setattr(throughput, "collect", lambda what, limit: items[:limit])
    monkeypatch.setattr(
        throughput,
        "load_engine",
        lambda *given, **named: Engine(tiny.model, slots=2, kept_steps=4, compile="off"),
    )
    monkeypatch.setattr(throughput, "load_classifier", build_classifier)
    monkeypatch.setattr(throughput, "_settings", lambda options: settings)
    monkeypatch.setattr(
        throughput.processes,
        "seconds_an_image",
        lambda side, start, stop, options: {"engine": 1e-3, "plain": 4e-3}[side],
    )


def options(folder, **given):
    defaults = {
        "results": folder, "one_process": None, "jobs": 3, "rounds": 2, "processes": True,
        "cause_repeats": 1, "iterations": None, "slots": None, "memory": "auto",
        "compile": "auto",
    }  # fmt: skip
    return Namespace(**defaults | given)


def test_the_command(small, tmp_path, capsys):
    assert throughput.run(options(tmp_path)) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "throughput.json").read_text())
    assert set(KEYS) <= set(last)
    assert last["jobs"] == 3 and last["plain_images"] == 2
    assert all(0.9 < each <= 1 for each in last["bf16_gradient_cosine"].values())
    assert last["gradient_agreement"] < 1e-8
    assert last["final_loss_ratio"] == pytest.approx(1, abs=1e-3)
    seconds = last["seconds_per_image"]
    assert len(seconds["engine"]) == len(seconds["plain loop"]) == 2
    assert last["ratio_low"] <= last["ratio"] <= last["ratio_high"]
    assert last["engine_form"] == "engine, two processes of one thread"
    assert last["engine_images_per_min"] == 60_000 and last["two_process_ratio"] == 4
    assert last["one_process_ratio"] < last["ratio"]
    assert set(last["causes"]) == {
        "batching", "no recompute", "injection without maps", "shared decode", "kernels"
    }  # fmt: skip
    for cause in last["causes"].values():
        assert 0 < cause["low"] <= cause["factor"] <= cause["high"]
    assert 0 < last["outside_networks"] < 1


def test_speeds_of_other_computations_are_not_compared(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "gradient_errors", lambda *given: {"latents": 0.01})
    with pytest.raises(UserError, match="first gradients differ by 1.0e-02"):
        throughput.run(options(tmp_path))
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_worse_results_are_not_faster(small, tmp_path, monkeypatch, capsys):
    losses = iter([1.05, 1.05, 1.0, 1.05, 1.0, 1.05])
    monkeypatch.setattr(throughput, "_best", lambda history: next(losses))
    with pytest.raises(UserError, match="final loss is 1.050 of the plain loop's"):
        throughput.run(options(tmp_path))
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", ["engine", "plain"])
def test_two_processes_share_the_photos(small, side, tmp_path, monkeypatch, capsys):
    """Each does its part of the slice, here in this process."""
    timed = []
    for module, name in ((throughput.cf, "counterfactuals"),
                         (throughput.plain_photo, "counterfactual")):  # fmt: skip
        real = getattr(module, name)

        def note(first, items, *others, real=real, **named):
            timed.extend([items] if isinstance(items, ImageInput) else items)
            return real(first, items, *others, **named)

        monkeypatch.setattr(module, name, note)
    for first in range(processes.COUNT):
        share = processes.Share(side, 1, 3, first)
        assert processes.Share.parse(str(share)) == share
        assert throughput.run(options(tmp_path, one_process=share)) == 0
        assert json.loads(capsys.readouterr().out)["seconds"] > 0
    assert [item.id for item in timed] == ["p1", "p2"]
    assert not list(tmp_path.iterdir())


def test_pytorchs_kernels_are_pytorchs(monkeypatch):
    """Also where auto would take others."""
    model = LatentDiffusion.load("embedded", device="cpu")
    monkeypatch.setattr(fused, "checked", lambda *given: pytest.fail("not PyTorch's"))
    z = uniform(2, *model.latent_shape, seed=0).float()
    with pytorch_kernels(model):
        model.predict(z, torch.tensor([10, 10]), model.encode_prompts(["a", "b"]))


@pytest.fixture
def jobs(tiny):
    source = make_source(tiny.model, "a photo of a red sneaker", 4)
    injection = make_injection(tiny.model, source, "a photo of a cat", (1.0, 0.5, 0.0, 0.0))
    loss = ClassConfidence(build_classifier(), 1, cutouts=Cutouts(2))
    return [
        make_job(tiny.model, f"{n}", seed=n, losses=[loss], prompt="a photo of a cat",
                 injection=injection, iterations=1)
        for n in range(2)
    ]  # fmt: skip


def test_the_engine_without_an_idea_computes_the_same(tiny, jobs, monkeypatch):
    """But for the one whose networks are left out; and afterwards all is as before."""
    (classifier,) = {job.losses[0].classifier for job in jobs}
    found = variants(tiny.model, classifier, 2, 4)
    decodes = []
    decode = tiny.model.decode
    monkeypatch.setattr(tiny.model, "decode", lambda z: (decodes.append(1), decode(z))[1])
    expected = list(found[WHOLE].engine.run(jobs))
    whole = len(decodes)
    processors = {name: p.impl for name, p in tiny.model.unet.attn_processors.items()}
    for name, variant in found.items():
        decodes.clear()
        with variant.changed():
            results = list(variant.engine.run(jobs))
        same = [r.history[-1] == pytest.approx(e.history[-1], rel=1e-6)
                for r, e in zip(results, expected, strict=True)]  # fmt: skip
        assert all(same) == (name != NETWORKS), name
        if name != NETWORKS:
            assert_near(results[0].image, expected[0].image, 1e-6)
            # Two evaluations of two jobs.
            assert len(decodes) == whole + (4 if name == "shared decode" else 0)
    assert {name: p.impl for name, p in tiny.model.unet.attn_processors.items()} == processors


def test_causes(tiny, jobs, monkeypatch):
    (classifier,) = {job.losses[0].classifier for job in jobs}
    seconds = {
        WHOLE: [2.0, 1.0, 4.0], "kernels": [3.0, 6.0, 4.0], NETWORKS: [0.1, 0.1, 0.2],
        COMPILED: [1.0, 2.0, 0.5],
    }  # fmt: skip
    monkeypatch.setattr("fastdigin_bench.causes.time_variants", lambda *given: dict(seconds))
    causes, outside = find_causes(tiny.model, classifier, jobs, 2, 3, compiled=True)
    assert set(causes) == {"kernels", COMPILED} and outside == pytest.approx(0.05)
    kernels, compiled = causes["kernels"], causes[COMPILED]
    assert (kernels.factor, kernels.low, kernels.high) == (2.0, 0.75, 6.0)
    assert (compiled.factor, compiled.low, compiled.high) == (2.0, 0.5, 8.0)


def test_forward_equivalents(tiny, jobs):
    """Forward and input gradient are 2; the recomputed forward makes 3."""
    plain = [replace(job, injection=None) for job in jobs]
    found = forward_equivalents(Engine(tiny.model, slots=2), plain)
    assert 1.9 < found["kept"]["networks"] <= 2.1
    assert 2.9 < found["recomputed"]["networks"] <= 3.05
    assert found["kept"]["attention"] == 3.5 and found["recomputed"]["attention"] == 4.5


def test_gradients_of_a_whole_chain_in_half_precision(jobs):
    model = build_tiny().model
    for network in model.networks:
        network.float()
    found = gradient_cosines(model, jobs[0], torch.bfloat16)
    assert set(found) == {"latents", "conditioning", "null_text"}
    assert all(0.9 < each < 1 for each in found.values()), found
