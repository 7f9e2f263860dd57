"""fastdigin bench throughput: its refusals, its figures by hand, and one small run of all of it."""

import json
from dataclasses import replace

import pytest
import torch
from gradients import Called
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

import fastdigin as fd
from fastdigin import cli
from fastdigin_bench import throughput
from fastdigin_bench.causes import (
    COMPILED,
    NETWORKS,
    WHOLE,
    causes_of,
    pytorch_kernels,
    variants,
)
from fastdigin_bench.equivalents import forward_equivalents
from fastdigin_bench.gradients import precision_cosines
from fastdigin_bench.plain_model import PlainModel
from fastdigin_bench.throughput import (
    ENGINE,
    EXACT_ENGINE,
    FAST_ENGINE,
    IN_TWO,
    PLAIN,
    SINGLE,
    Sides,
    Timings,
)

ITEMS = [
    fd.ImageInput(f"p{n}", uniform(*IMAGE_SHAPE, seed=n), "a red sneaker", "sneaker", "boot")
    for n in range(3)
]


@pytest.fixture(scope="module")
def sides(tiny):
    """The tiny model, and little to do for a photo."""
    settings = fd.presets.EXACT.of(fd.CounterfactualSettings(
        fd.Settings(steps=4, iterations=1), null_text_steps=1, injection_fractions=(0.5,),
        blending_fractions=(0.0,), cutouts=fd.Cutouts(2),
    ))  # fmt: skip
    engine = fd.Engine(tiny.model, slots=2, kept_steps=4, compile="off")
    return Sides(engine, PlainModel(tiny.model), build_classifier(), settings)


@pytest.fixture
def edited_jobs(tiny):
    """Two jobs of one update whose source's attention is injected."""
    source = make_source(tiny.model, "a photo of a red sneaker", 4)
    injection = make_injection(tiny.model, source, "a photo of a cat", (1.0, 0.5, 0.0, 0.0))
    loss = fd.ClassConfidence(build_classifier(), 1, cutouts=fd.Cutouts(2))
    return [
        make_job(tiny.model, f"{n}", seed=n, losses=[loss], prompt="a photo of a cat",
                 injection=injection, iterations=1)
        for n in range(2)
    ]  # fmt: skip


def test_both_sides_take_turns_and_agree(sides):
    asked = []

    def in_two(side, items):
        asked.append((side, [item.id for item in items]))
        return 1.0

    timings, jobs, agreement = throughput.time_rounds(sides, ITEMS, 2, in_two)
    everybody = ["p0", "p1", "p2"]
    assert asked == [
        (ENGINE, everybody), (FAST_ENGINE, everybody), (PLAIN, ["p0", "p1"]),
        (ENGINE, everybody), (FAST_ENGINE, everybody), (PLAIN, ["p1", "p2"]),
    ]  # fmt: skip
    forms = {ENGINE, FAST_ENGINE, PLAIN, *IN_TWO.values()}
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == dict.fromkeys(
        forms, 2
    )
    assert [job.id for job in jobs] == ["p0-to-boot", "p1-to-boot"]
    assert agreement < 1e-8
    assert set(timings.losses[PLAIN]) == {"p0-to-boot", "p2-to-boot"}
    assert throughput.loss_ratio(timings.losses) == pytest.approx(1, abs=1e-3)


def test_the_yardstick_is_the_exact_settings(sides):
    """Where the default computes something else, the exact settings are compared besides."""
    direct = replace(sides, settings=replace(sides.settings, inversion_method="direct"))
    timings, jobs, agreement = throughput.time_rounds(direct, ITEMS[:1], 1, None)
    assert jobs[0].offsets is not None and agreement < 1e-8
    assert set(timings.seconds) == {ENGINE, EXACT_ENGINE, FAST_ENGINE, PLAIN}
    losses = timings.losses
    assert losses[ENGINE] != losses[EXACT_ENGINE]
    assert throughput.loss_ratio(losses) == pytest.approx(1, abs=1e-3)


def test_speeds_of_other_computations_are_not_compared(sides, tiny_v):
    other = replace(sides, plain=PlainModel(tiny_v.model))
    with pytest.raises(fd.UserError, match="first gradients differ by"):
        throughput.time_rounds(other, ITEMS[:1], 1, None)


def test_worse_results_are_not_faster():
    plain = {"a": 1.0, "b": 2.0}
    assert throughput.loss_ratio({PLAIN: plain, ENGINE: {"a": 1.03, "b": 2.0, "c": 9.0}}) == 1.01
    for worse in (1.1, float("nan")):
        with pytest.raises(fd.UserError, match="of the plain loop's"):
            throughput.loss_ratio({PLAIN: plain, ENGINE: {"a": worse, "b": 2.0}})


def test_figures_by_hand():
    seconds = {
        ENGINE: [12.0, 10.0, 15.0], IN_TWO[ENGINE]: [8.0, 7.5, 10.0], PLAIN: [60.0, 50.0],
        IN_TWO[PLAIN]: [20.0], SINGLE: [25.0], FAST_ENGINE: [4.0, 3.0, 5.0],
        IN_TWO[FAST_ENGINE]: [2.5],
    }  # fmt: skip
    found = throughput.figures(Timings(seconds))
    assert found["engine_form"] == IN_TWO[ENGINE] and found["plain_images"] == 2
    assert found["engine_images_per_min"] == 7.5
    assert found["plain_images_per_min"] == pytest.approx(60 / 55, abs=1e-4)
    assert found["ratio"] == 6.875
    assert (found["ratio_low"], found["ratio_high"]) == (5.0, 8.0)
    assert found["one_process_ratio"] == pytest.approx(55 / 12, abs=1e-4)
    assert found["ratio_fast"] == 22.0 and found["fast_form"] == IN_TWO[FAST_ENGINE]
    assert found["single_job_ratio"] == 2.2 and found["two_process_ratio"] == 2.5
    assert found["seconds_per_image"] == seconds
    single = {name: s for name, s in seconds.items() if name not in IN_TWO.values()}
    alone = throughput.figures(Timings(single))
    assert alone["engine_form"] == ENGINE and "two_process_ratio" not in alone
    assert alone["ratio_fast"] == 13.75


def test_forward_equivalents(tiny, edited_jobs):
    """Forward and input gradient are 2; the recomputed forward makes 3."""
    plain = [replace(job, injection=None) for job in edited_jobs]
    found = forward_equivalents(fd.Engine(tiny.model, slots=2), plain)
    assert 1.9 < found["kept"]["networks"] <= 2.1
    assert 2.9 < found["recomputed"]["networks"] <= 3.05
    assert found["kept"]["attention"] == 3.5 and found["recomputed"]["attention"] == 4.5


def test_gradients_of_a_whole_chain_in_half_precision(edited_jobs):
    model = build_tiny().model
    for network in model.networks:
        network.float()
    found = precision_cosines(model, edited_jobs[0], torch.bfloat16)
    assert set(found) == {"latents", "conditioning", "null_text"}
    assert all(0.9 < each < 1 for each in found.values()), found


def test_pytorchs_kernels_are_pytorchs():
    model = fd.LatentDiffusion.load("embedded", device="cpu", attention="cpp")
    inputs = torch.randn(2, *model.latent_shape), torch.tensor([10, 10])
    text = model.encode_prompts(["a", "b"])
    with Called() as ours:
        model.predict(*inputs, text)
    with pytorch_kernels(), Called() as pytorchs:
        model.predict(*inputs, text)
    libraries = [{name.partition("::")[0] for name in each.names} for each in (ours, pytorchs)]
    assert libraries[1] == {"aten"} and len(libraries[0]) > 1, libraries


def test_the_engine_without_an_idea_computes_the_same(tiny, edited_jobs):
    """But for the one whose networks are left out; and afterwards all is as before."""
    (classifier,) = {job.losses[0].classifier for job in edited_jobs}
    ideas = variants(tiny.model, classifier, edited_jobs, slots=2, compiled=False)
    decodes = []
    hook = tiny.model.vae.decoder.register_forward_hook(lambda *_: decodes.append(1))
    expected = ideas[WHOLE]()
    whole = len(decodes)
    processors = {name: p.impl for name, p in tiny.model.unet.attn_processors.items()}
    for name, run in ideas.items():
        decodes.clear()
        results = run()
        same = [r.history[-1] == pytest.approx(e.history[-1], rel=1e-6)
                for r, e in zip(results, expected, strict=True)]  # fmt: skip
        assert all(same) == (name != NETWORKS), name
        if name != NETWORKS:
            assert_near(results[0].image, expected[0].image, 1e-6)
            # Two evaluations of two jobs.
            assert len(decodes) == whole + (4 if name == "shared decode" else 0)
    hook.remove()
    assert {name: p.impl for name, p in tiny.model.unet.attn_processors.items()} == processors


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


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """Two photos with one update each; some minutes."""
    arguments = ["--jobs", "2", "--rounds", "1", "--iterations", "1", "--cause-repeats", "1"]
    folder = tmp_path / "results"
    assert cli.main(["bench", "throughput", *arguments, "--results", str(folder)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((folder / "throughput.json").read_text())
    assert last["jobs"] == 2 and last["plain_images"] == 1
    assert set(last["seconds_per_image"]) == {
        ENGINE, FAST_ENGINE, SINGLE, PLAIN, *IN_TWO.values()
    }  # fmt: skip
    assert last["ratio_low"] <= last["ratio"] <= last["ratio_high"]
    assert last["gradient_agreement"] < 1e-4 and last["final_loss_ratio"] < 1.02
    assert all(0.9 < each <= 1 for each in last["bf16_gradient_cosine"].values())
    assert 0 < last["outside_networks"] < 1 and last["recompiles"] == 0
    for cause in last["causes"].values():
        assert 0 < cause["low"] <= cause["factor"] <= cause["high"]
