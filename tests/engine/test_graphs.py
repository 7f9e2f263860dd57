"""What a GPU replays: the same results, one graph a kind of call, and nothing overwritten."""

import pytest
import torch
from pretended import PretendedGpu
from tiny import build_classifier, make_mixed_jobs, normal

from fastdigin import hardware
from fastdigin.engine.engine import Engine
from fastdigin.engine.graphs import Graphs

STEPS, ITERATIONS, SLOTS = 4, 2, 4


@pytest.fixture(scope="module")
def queue(model):
    return make_mixed_jobs(model, build_classifier(), crops=2, iterations=ITERATIONS)


def run(model, queue, gpu, kept_steps=0, **options):
    with hardware.pretend(gpu):
        engine = Engine(model, slots=SLOTS, kept_steps=kept_steps, compile="off", **options)
        return {r.id: r for r in engine.run(queue)}


@pytest.mark.parametrize("kept_steps", [0, 3])
def test_replayed_optimisations_are_the_same(model, queue, kept_steps):
    gpu = PretendedGpu()
    expected = run(model, queue, PretendedGpu(graphs=False))
    found = run(model, queue, gpu, kept_steps)
    off = PretendedGpu()
    run(model, queue, off, graphs="off")
    assert gpu.replays > 0 and off.replays == off.recorded == 0
    for id, result in expected.items():
        assert found[id].status == "done", found[id].error
        torch.testing.assert_close(found[id].image, result.image, rtol=0, atol=1e-9)


def test_one_graph_a_kind_of_call_and_one_launch_a_call(model, queue):
    gpu = PretendedGpu()
    with hardware.pretend(gpu):
        engine = Engine(model, slots=SLOTS, kept_steps=0, compile="off")
        list(engine.run(queue))
        recorded, before = gpu.recorded, gpu.replays
        # Two forwards and two joints: injected or not. With gradient and without: decode, and the
        # classifier on plain images, once for its neurons. Crops and the classifier on them.
        kinds = {"steps": 4, "decode": 2 + 1, "plain": 2 + 1 + 1, "crops": 2, "on crops": 2}
        assert recorded <= sum(kinds.values())
        engine.submit(queue[:SLOTS])
        while engine.busy:
            engine.step()
        assert gpu.recorded == recorded, "another queue records nothing"
    # Of an iteration: T forwards, T joints, and for each of 3 x0 decode, crops, two classifiers
    # there and back; the last image once more on its own. The last iteration has no way back.
    each = 2 * STEPS + 3 * 2 * 4 + 1
    assert gpu.replays - before <= ITERATIONS * each + STEPS + 1 + 2


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("kept_steps", [0, 2])
def test_the_unet_is_given_the_layout_that_it_works_in(model, queue, graphs, kept_steps):
    """Channels last, there and back, or the first and the last convolution would copy."""
    seen = []

    def look(x):
        seen.append(x.is_contiguous(memory_format=torch.channels_last))

    def look_back(module, inputs, output):
        if output.requires_grad:
            output.register_hook(look)

    unet = model.unet
    handles = [
        unet.conv_in.register_forward_pre_hook(lambda module, inputs: look(inputs[0])),
        unet.conv_out.register_forward_hook(look_back),
    ]
    gpu = PretendedGpu()
    with hardware.pretend(gpu):
        engine = Engine(
            model, slots=SLOTS, kept_steps=kept_steps, compile="off", graphs=graphs, memory="1GiB"
        )
        engine.submit(queue[:SLOTS])
        engine._batch.refill(run_stage=None)  # the planner's measuring has no layout to keep
        seen.clear()
        engine._batch.iterate()
    for handle in handles:
        handle.remove()
    assert len(seen) >= 2 * STEPS and all(seen)


def graph_of(function, copies=1):
    """(function called by its graph, the pretended GPU)."""
    gpu = PretendedGpu()
    graphs = Graphs(gpu, copies)
    return lambda *inputs: graphs("f", function, *inputs), gpu


def f(x, y=None):
    return x.sin() * (1 if y is None else y), (x**2).sum(dim=1)


@pytest.mark.parametrize("inputs", [1, 2])
def test_results_and_gradients_are_those_of_the_function(inputs):
    call, gpu = graph_of(f)
    for seed in range(3):
        given = [normal(2, 3, seed=seed + k).requires_grad_() for k in range(inputs)]
        incoming = normal(2, 3, seed=9), normal(2, seed=10)
        found, expected = call(*given), f(*given)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        pairs = (torch.autograd.grad(outputs, given, incoming) for outputs in (found, expected))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert gpu.recorded == 2, "the way there and the way back"


def test_a_later_call_changes_no_earlier_result():
    call, _ = graph_of(f)
    x = normal(2, 3)
    first = call(x)
    kept = [y.clone() for y in first]
    call(normal(2, 3, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize("copies", [1, 2])
def test_what_waits_for_its_way_back_is_not_overwritten(copies):
    """The second has its own graphs, or is served without one, and both their own gradients."""
    call, gpu = graph_of(f, copies)
    xs = [normal(2, 3, seed=k).requires_grad_() for k in range(3)]
    warm = call(xs[2])[0].sum()
    warm.backward()
    before = gpu.replays
    outputs = [call(x)[0].sum() for x in xs[:2]]
    for x, output in zip(xs, outputs, strict=False):
        (gradient,) = torch.autograd.grad(output, x)
        torch.testing.assert_close(gradient, x.detach().cos())
    # Each pair is replayed once when it is recorded, which the first was before.
    assert gpu.recorded == 2 * copies and gpu.replays == before + 3 * copies - 1


def test_another_shape_and_another_need_of_gradients_are_other_graphs():
    call, gpu = graph_of(f)
    for x in (normal(2, 3), normal(4, 3), normal(2, 3).float(), normal(2, 3).requires_grad_()):
        call(x)
    assert gpu.recorded == 3 + 2
    with torch.no_grad():
        call(normal(2, 3).requires_grad_())
    assert gpu.recorded == 5


def test_what_cannot_be_recorded_is_run(caplog):
    class Refuses(PretendedGpu):
        def record(self, run, forget, pool):
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs, x = Graphs(Refuses()), normal(2, 3)
    for _ in range(2):
        assert torch.equal(graphs("f", f, x)[0], x.sin())
    assert caplog.text.count("not permitted") == 1, "told once"


def test_graphs_are_given_up_where_memory_runs_out(model, queue, monkeypatch):
    """And recorded anew for the smaller batch."""
    predict = model.predict

    def limited(z, *args):
        if len(z) > 4:
            raise torch.OutOfMemoryError("pretended")
        return predict(z, *args)

    expected = run(model, queue, PretendedGpu(graphs=False))
    monkeypatch.setattr(model, "predict", limited)
    found = run(model, queue, PretendedGpu())
    for id, result in expected.items():
        assert found[id].status == "done", found[id].error
        torch.testing.assert_close(found[id].image, result.image, rtol=0, atol=1e-6)


class PooledGpu(PretendedGpu):
    """Its recordings lie in their pool as unluckily as may be: each in what all before left free.

    spoilt: ways back that found other activations than their way there had left.
    """

    def __init__(self):
        super().__init__()
        self.pools, self.spoilt, self._ways_there = [], [], {}

    def new_pool(self):
        self.pools.append([])
        return self.pools[-1]

    def record(self, run, forget, pool):
        place, graph = len(pool), object()
        pool.append(None)  # who wrote there last
        replay = super().record(run)
        is_back = run.__name__ == "_run_backward"
        if not is_back:
            self._ways_there[run.__self__] = place, graph
        activations, way_there = self._ways_there[run.__self__]

        def write_and_replay():
            if is_back and pool[activations] is not way_there:
                self.spoilt.append(run)
            pool[place:] = [graph] * (len(pool) - place)
            replay()

        return write_and_replay


def test_nothing_overwrites_what_waits_for_its_way_back(model, queue):
    """Searched, then optimised, with fewer slots at the end and with other shapes before."""
    gpu = PooledGpu()
    with hardware.pretend(gpu):
        engine = Engine(model, slots=SLOTS, kept_steps=3, compile="off")
        engine.evaluate(queue[:SLOTS])
        for part in (queue[:2], queue, queue[:3], queue):
            assert all(result.status == "done" for result in engine.run(part))
    assert gpu.replays > 0 and not gpu.spoilt


def test_given_up_graphs_leave_no_pool_to_those_that_follow():
    """torch opens none again whose graphs are gone."""
    gpu, x = PooledGpu(), normal(2, 3)
    graphs = Graphs(gpu)
    for _ in range(2):
        graphs("f", f, x), graphs("f", f, x.clone().requires_grad_())
        graphs.clear()
    assert len(gpu.pools) == 4


def test_a_recording_that_memory_ends_is_out_of_memory():
    """Whatever CUDA says of a recording that was not finished."""

    class Full(PretendedGpu):
        def record(self, run, forget, pool):
            try:
                raise torch.OutOfMemoryError("pretended")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(torch.OutOfMemoryError):
        Graphs(Full())("f", f, normal(2, 3))


def test_graphs_of_an_earlier_batch_take_nothing_from_the_next(model, queue):
    """One of the same kind replays them, in their memory; another kind gives them up."""
    gpu = PretendedGpu()
    with hardware.pretend(gpu):
        engine = Engine(model, slots=SLOTS, compile="off")
        list(engine.run(queue[:SLOTS]))
        plan, recorded = engine.plan, gpu.recorded
        assert plan.kept_steps == STEPS
        free, gpu.free = gpu.free, plan.predicted // 2  # the graphs have the rest
        list(engine.run(queue[:SLOTS]))
        assert engine.plan == plan and gpu.recorded == recorded
        gpu.free = free // 2  # what is free when they are gone
        list(engine.run(queue[:2]))
        assert engine.plan.budget == int(0.9 * gpu.free) and engine.plan.slots == 2
