"""Whole queues of compiled steps: which graphs they make, and what they compute."""

from dataclasses import replace

import torch
from four_tasks import four_tasks
from tiny import assert_near, make_job, uniform

from fastdigin.engine import compile_choice
from fastdigin.engine.compiled import GraphKey
from fastdigin.engine.engine import Engine


def test_a_mixed_queue_of_all_tasks_makes_no_graph_beyond_the_declared_set(compiled_engine):
    jobs = [explanation.result.job for explanation in four_tasks(compiled_engine)]
    assert len(jobs) == 8 and sum(job.injection is not None for job in jobs) == 4
    mixed = [jobs[i] for i in (0, 2, 4, 6, 3, 1, 7, 5)]
    mixed[3] = replace(mixed[3], settings=replace(mixed[3].settings, iterations=2))
    results = list(compiled_engine.run(mixed))
    assert all(result.status == "done" for result in results)

    declared = {
        GraphKey(role, rows=2, guided=True, injected=injected)
        for role in ("forward", "joint", "kept")
        for injected in (False, True)
    }

    def of_tasks():  # other tests share the engine, and inject self-attention
        graphs = compiled_engine.graphs.items()
        own = {key: n for key, n in graphs if key.guided and not key.injected_self}
        return {key: n for key, n in own.items() if key.rows == 2}  # inversion takes four

    graphs = of_tasks()
    assert compiled_engine.recompiles == 0 and graphs.keys() <= declared
    # Steps that inject come first, those that are kept last: not in one step unless all are kept.
    assert graphs.keys() >= declared - {GraphKey("kept", 2, guided=True, injected=True)}

    second = list(compiled_engine.run(mixed[::-1]))
    assert compiled_engine.recompiles == 0
    assert of_tasks() == graphs

    uncompiled = Engine(compiled_engine.model, slots=2, kept_steps=1, compile="off")
    expected = {result.id: result for result in uncompiled.run(mixed)}
    assert uncompiled.graphs == {} and len(expected) == len(mixed)
    for result in [*results, *second]:
        assert_near(result.image, expected[result.id].image, 1e-9)


def test_sampling_is_differentiable_through_compiled_steps(compiled_engine):
    model = compiled_engine.model
    texts = [make_job(model, prompt=prompt).conditioning for prompt in ("a boot", "a bag")]
    gradients = []
    for engine in (compiled_engine, Engine(model, kept_steps=1, compile="off")):
        z, cond = torch.stack([uniform(*model.latent_shape, seed=s) for s in (1, 2)]), texts
        z, cond = z.requires_grad_(), torch.stack(cond).requires_grad_()
        engine.sample(z, cond, steps=3).square().sum().backward()
        gradients.append((z.grad, cond.grad))
    for actual, expected in zip(*gradients, strict=True):
        assert_near(actual, expected, 1e-10)


def test_short_queues_take_half_the_rows(model, monkeypatch):
    monkeypatch.setattr(compile_choice, "BACKEND", "eager")
    engine = Engine(model, slots=4, kept_steps=0, compile="on")
    for count in (1, 2, 3, 4):
        engine.evaluate([make_job(model, str(i), steps=1) for i in range(count)])
    expected = {GraphKey("forward", rows, guided=True, injected=False): 1 for rows in (2, 4)}
    assert engine.graphs == expected
    assert engine.plan.compiled


def test_smaller_batches_than_there_are_graphs_for_run_uncompiled(compiled_engine, monkeypatch):
    """Where memory runs out, four rows instead of two jobs would be no help."""

    def fail(slots, plan):
        raise torch.OutOfMemoryError("none left")

    engine = Engine(compiled_engine.model, slots=8, kept_steps=2, compile="on")
    engine.submit([make_job(engine.model)] * 8)
    batch, found = engine._batch, []
    batch.refill(run_stage=None)
    monkeypatch.setattr(batch, "gradients", fail)
    plan = batch.plan
    for _ in range(5):
        _, plan, again = batch.try_gradients(batch.slots[: plan.slots], plan)
        assert again
        found.append((plan.slots, plan.kept_steps, plan.compiled))
    assert found == [(8, 1, True), (8, 0, True), (4, 0, True), (2, 0, False), (1, 0, False)]
