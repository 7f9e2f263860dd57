"""Compiled step functions against the eager ones, and how many graphs they make."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny import (
    assert_near,
    build_tiny,
    make_blending,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    multistep_scheduler,
    normal,
    with_scheduler,
)

from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey
from fastdigin.engine.costs import step_inputs as step_inputs_of
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.steps import BatchSteps

SOURCE, PROMPT = "a photo of a red sneaker", "a photo of a cat"
ROWS = 2


@pytest.fixture
def model(compiled_engine):
    return compiled_engine.model


@pytest.fixture
def compiled(compiled_engine):
    """One for all tests, as every graph takes seconds."""
    return compiled_engine._choice.functions


def batch_steps(model, steps=4, rows=ROWS, guidance=3.0, edited=True):
    """Steps of which the first injects and blends, the second blends and the others do neither."""
    edits = {}
    if edited:
        source = make_source(model, SOURCE, steps)
        off = (0.0,) * (steps - 2)
        edits = {
            "injection": make_injection(model, source, PROMPT, (0.7, 0.0, *off)),
            "blending": make_blending(source, (1.0, 0.5, *off)),
        }
    jobs = [
        make_job(
            model, prompt=PROMPT, steps=steps, guidance_scale=guidance, **(edits if k == 0 else {})
        )
        for k in range(rows)
    ]
    return BatchSteps(model, jobs, torch.float64)


def step_inputs(model, rows=ROWS, steps=4, guided=True):
    """z, and cond and null as the loop cuts them out of (B, T, L, D)."""
    text = (rows, steps, model.text_length, model.text_width)
    cond, null = normal(*text, seed=1), normal(*text, seed=2)
    return normal(rows, *model.latent_shape), cond[:, 1], null[:, 1] if guided else None


def gradients(model, rows=ROWS):
    return [normal(rows, *model.latent_shape, seed=seed) for seed in (3, 4)]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def kept(functions, inputs, incoming):
    graph = functions.forward_with_graph(*inputs)
    outputs = graph.z_prev.detach(), graph.x0.detach()
    return *outputs, *functions.vjp(graph, *incoming)


@pytest.mark.parametrize("missing", [None, 0, 1])
@pytest.mark.parametrize("i", [0, 1, 3])
def test_every_role_gives_what_the_eager_functions_give(compiled, model, i, missing):
    eager, step = StepFunctions(model), batch_steps(model)[i]
    assert (step.injected is None, step.blend is None) == (i > 0, i > 1)
    inputs, incoming = (*step_inputs(model), step), gradients(model)
    if missing is not None:
        incoming[missing] = None
    assert_same(compiled.forward(*inputs), eager.forward(*inputs))
    assert_same(compiled.joint(*inputs, *incoming), eager.joint(*inputs, *incoming))
    assert_same(kept(compiled, inputs, incoming), kept(eager, inputs, incoming))


def test_injected_self_attention_is_a_graph_of_its_own(compiled, model):
    source = make_source(model, SOURCE, 4)
    own = make_self_injection(model, source, (0.7, 0.0, 0.0, 0.0), self_queries=64)
    jobs = [make_job(model, prompt=PROMPT, self_injection=own), make_job(model)]
    step, eager = BatchSteps(model, jobs, torch.float64)[0], StepFunctions(model)
    assert_same(
        compiled.joint(*step_inputs(model), step, *gradients(model)),
        eager.joint(*step_inputs(model), step, *gradients(model)),
    )
    assert compiled.graphs[GraphKey("joint", ROWS, True, False, injected_self=True)] == 1


@pytest.mark.parametrize("missing", [None, 0, 1])
def test_a_multistep_solver_agrees_too(tiny, missing):
    """Its state has twice the channels, its x0 has not."""
    model = with_scheduler(tiny, multistep_scheduler()).model
    step, (z, cond, null) = batch_steps(model)[1], step_inputs(model)
    state, incoming = torch.cat([z, z.flip(0)], dim=1), gradients(model)
    incoming[0] = torch.cat([incoming[0], incoming[1].flip(0)], dim=1)
    if missing is not None:
        incoming[missing] = None
    compiled, eager = CompiledStepFunctions(model, [ROWS], "aot_eager"), StepFunctions(model)
    inputs = state, cond, null, step
    assert_same(compiled.forward(*inputs), eager.forward(*inputs))
    assert_same(compiled.joint(*inputs, *incoming), eager.joint(*inputs, *incoming))
    assert set(compiled.graphs.values()) == {1}


def test_no_graph_depends_on_the_step_the_job_or_the_layout(compiled, model):
    """Run after the tests above or alone, it finds one graph a key."""
    for steps in (4, 3):
        for step in batch_steps(model, steps=steps):
            for inputs in (step_inputs(model), step_inputs(model, steps=steps + 1)):
                compiled.forward(*inputs, step)
                compiled.joint(*inputs, step, *gradients(model))
                graph = compiled.forward_with_graph(*inputs, step)
                compiled.vjp(graph, *gradients(model))
    z, cond, null = step_inputs(model)
    other = (z.to(memory_format=torch.channels_last), cond.clone().requires_grad_(), null)
    other_gradient = gradients(model)[0][..., :1].expand_as(z)
    compiled.joint(*other, replace(step, noise=0 * z), other_gradient, None)

    guided = [GraphKey(role, ROWS, True, False) for role in ("forward", "joint", "kept")]
    declared = [*guided, *(replace(key, injected=True) for key in guided)]
    found = {
        key: count for key, count in compiled.graphs.items() if key.guided and not key.injected_self
    }
    assert found == dict.fromkeys(declared, 1)


def test_one_row_has_one_graph_whatever_its_strides(model):
    functions = CompiledStepFunctions(model, {1}, backend="eager")
    for steps in (3, 4):
        for step in batch_steps(model, steps=steps, rows=1, edited=False):
            functions.forward(*step_inputs(model, rows=1, steps=steps), step)
    assert functions.graphs == {GraphKey("forward", 1, True, False): 1}


def test_other_numbers_of_rows_run_uncompiled(compiled, model):
    before, eager = dict(compiled.graphs), StepFunctions(model)
    inputs = (*step_inputs(model, rows=3), batch_steps(model, rows=3)[0])
    incoming = gradients(model, rows=3)
    assert_same(compiled.forward(*inputs), eager.forward(*inputs))
    assert_same(compiled.joint(*inputs, *incoming), eager.joint(*inputs, *incoming))
    assert_same(kept(compiled, inputs, incoming), kept(eager, inputs, incoming))
    assert compiled.graphs == before


def test_an_unexpected_graph_is_counted_and_logged(model, caplog):
    functions = CompiledStepFunctions(model, {1}, backend="eager")
    step = batch_steps(model, rows=1, edited=False)[0]
    z, cond, null = step_inputs(model, rows=1)
    with caplog.at_level(logging.WARNING, "fastdigin"):
        functions.forward(z, cond, null, step)
        assert not caplog.records
        functions.forward(z, cond[:, :-1], null[:, :-1], step)  # another length of text
    assert functions.graphs == {GraphKey("forward", 1, True, False): 2}
    assert "one was expected" in caplog.text


def test_half_precision_rescales_the_incoming_gradient():
    """Gradients of 1e-30 would be zero in bf16's products; powers of two change no bit."""
    model = build_tiny(levels=1).model
    model.unet.bfloat16()
    functions = CompiledStepFunctions(model, {1}, backend="eager")
    z, cond, null = (x.float() for x in step_inputs(model, rows=1))
    step = batch_steps(model, rows=1, edited=False)[0]
    step = replace(step, coefficients=step.coefficients.float(), guidance=step.guidance.float())
    incoming = [g.float() for g in gradients(model, rows=1)]
    usual = functions.joint(z, cond, null, step, *incoming)
    small = functions.joint(z, cond, null, step, *(g * 2.0**-100 for g in incoming))
    eager = StepFunctions(model).joint(z, cond, null, step, *incoming)
    for a, b, c in zip(usual, small, eager, strict=True):
        assert a.abs().max() > 1e-3
        assert torch.equal(a * 2.0**-100, b)
        torch.testing.assert_close(a, c, rtol=0.05, atol=0.05 * float(c.abs().max()))


@pytest.mark.slow
def test_inductor_gives_the_gradients_of_the_embedded_model(embedded, tmp_path, monkeypatch):
    """As users run it, with the C++ kernels where there are any; nothing is read from a cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled, eager = CompiledStepFunctions(embedded, {1}), StepFunctions(embedded)
    *inputs, step = step_inputs_of(embedded, 1, True, embedded.text_length)
    inputs = [normal(*x.shape, seed=k).float() for k, x in enumerate(inputs)]
    step = replace(step, guidance=torch.full((1,), 3.0))
    incoming = [normal(1, *embedded.latent_shape, seed=k).float() for k in (4, 5)]
    actual = compiled.joint(*inputs, step, *incoming)
    for a, b in zip(actual, eager.joint(*inputs, step, *incoming), strict=True):
        assert_near(a, b, 1e-5)
    assert compiled.graphs == {GraphKey("joint", 1, True, False): 1}
