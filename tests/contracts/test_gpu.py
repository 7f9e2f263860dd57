"""The engine on a real GPU: run with ``pytest -m gpu``. What it promises elsewhere holds there too.

Random networks in fp64, so that results can be compared with the CPU's to many digits.
"""

import warnings

import numpy as np
import pytest
import torch
from tiny import build_classifier, build_tiny, make_mixed_jobs

from fastdigin import hardware
from fastdigin.engine.engine import Engine
from fastdigin.objectives import philox

pytestmark = pytest.mark.gpu

DEVICE, STEPS = "cuda", 4


@pytest.fixture(scope="module")
def model():
    model = build_tiny().model
    for network in model.networks:
        network.to(DEVICE)
    return model


def jobs(model, classifier):
    """Made on the CPU."""
    return make_mixed_jobs(model, classifier, crops=4)


@pytest.fixture(scope="module")
def expected():
    tiny = build_tiny().model
    return {r.id: r for r in Engine(tiny, slots=4).run(jobs(tiny, build_classifier()))}


def check(results, expected, tolerance=1e-7):
    assert sorted(r.id for r in results) == sorted(expected)
    for result in results:
        assert result.status == "done", result.error
        torch.testing.assert_close(result.image, expected[result.id].image, rtol=0, atol=tolerance)


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("kept_steps", [0, 2, STEPS])
def test_results_are_the_cpus(model, expected, graphs, kept_steps):
    engine = Engine(model, slots=4, kept_steps=kept_steps, compile="off", graphs=graphs)
    queue = jobs(model, build_classifier().to(DEVICE))
    check(list(engine.run(queue)), expected)
    check(list(engine.run(queue[::-1])), expected)  # what was recorded serves again


def test_an_iteration_waits_once(model):
    engine = Engine(model, slots=4, kept_steps=0, compile="off")
    engine.submit(jobs(model, build_classifier().to(DEVICE))[:4])
    engine.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            engine._batch.iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1


def test_memory_that_holds_less_than_planned_loses_nothing(model, expected):
    """A process that may take a little more than what is taken already."""
    classifier = build_classifier().to(DEVICE)
    torch.cuda.empty_cache()
    with hardware.of(DEVICE).count_bytes() as count:
        list(Engine(model, slots=4, kept_steps=0, compile="off").run(jobs(model, classifier)))
        peak = count.peak
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.8 * peak) / total)
    try:
        engine = Engine(model, slots=4, kept_steps=STEPS, compile="off")
        check(list(engine.run(jobs(model, classifier))), expected, tolerance=1e-5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_the_predicted_peak_holds_the_measured_one(model, graphs):
    for _ in range(2):  # the first chooses kernels and finds workspaces
        engine = Engine(model, memory="2GiB", slots=4, kept_steps=2, compile="off", graphs=graphs)
        with hardware.of(DEVICE).count_bytes() as count:
            results = list(engine.run(jobs(model, build_classifier().to(DEVICE))[:4]))
            peak = count.peak
        assert all(result.status == "done" for result in results)
    assert 0.5 * engine.plan.predicted < peak < 1.2 * engine.plan.predicted


def test_random_numbers_are_the_cpus():
    """Integers and uniform numbers to the bit, normal ones to 4 units in the last place."""
    keys = [(7, 0, 1), (-3, 19, 2), (2**63, 5, 0)]
    here, there = philox.key_words(keys, "cpu"), philox.key_words(keys, DEVICE)
    for draw in (philox.words, philox.uniform):
        assert torch.equal(draw(here, 10_001, 1), draw(there, 10_001, 1).cpu())
    a, b = (philox.normal(x, 10_001, 1).cpu().numpy() for x in (here, there))
    assert (np.abs(a - b) <= 4 * np.spacing(np.abs(a))).all()
