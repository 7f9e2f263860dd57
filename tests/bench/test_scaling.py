"""fastdigin bench scaling: what it times, and how idle slots are counted."""

import pytest
import torch
from tiny import make_injection, make_job, make_source, normal

from fastdigin.engine.engine import Engine
from fastdigin.models.attention import AttentionControl, InjectedAttention, SourceAttention
from fastdigin_bench import occupancy, scaling
from fastdigin_bench.occupancy import Occupancy, counted_rows, idle_iterations
from fastdigin_bench.scaling import Point


def test_rows_of_scaling():
    """Points are timed; four images, each evaluated three times in ten steps, by hand."""
    point = Point(jobs=1, steps=2, resolution=32)
    (seconds,) = scaling.time_points([point], repeats=2).values()
    assert len(seconds) == 2 and min(seconds) > 0
    row = scaling.figures(Point(jobs=4, steps=10), [3.0, 2.0, 2.4])
    assert row["seconds"] == [3.0, 2.0, 2.4]
    assert (row["jobs"], row["steps"], row["resolution"]) == (4, 10, 64)
    assert row["images_per_min"] == 100.0 and row["ms_per_step"] == 20.0


def rows(model, count):
    z, text = normal(count, *model.latent_shape), normal(count, 16, 16, seed=1)
    return z, torch.full((count,), 501), text


def test_repeated_rows_are_counted(tiny):
    model, found = tiny.model, Occupancy(1)
    z, t, text = rows(model, 3)
    padded = torch.tensor([0, 1, 2, 2])
    with counted_rows(model, found):
        model.predict(z[padded], t[padded], text[padded])
        assert (found.rows, found.repeated) == (4, 1)
        model.predict(z + 1, t, text)
        model.predict(z + 1, t - 1, text)
        model.predict(z + 1, t - 1, text + 1)
        assert (found.rows, found.repeated) == (13, 1)
        z[0] = 7  # one goes on, two wait
        model.predict(z, t, text)
        z[0] = 8
        model.predict(z, t, text)
        assert (found.rows, found.repeated) == (19, 3)
    model.predict(z, t, text)
    assert found.rows == 19


def test_candidates_of_one_photo_are_no_repetition(tiny):
    model, found = tiny.model, Occupancy(1)
    source = make_source(model, "a photo of a red sneaker", 4)
    injection = make_injection(model, source, "a photo of a cat", (1.0, 0.0, 0.0, 0.0))
    layers = {
        name: SourceAttention(
            each.tensor[:1].expand(2, -1, -1, -1), each.keys.expand(2, -1, -1, -1)
        )
        for name, each in injection.layers.items()
    }
    weight = torch.tensor([1.0, 0.5], dtype=torch.float64)
    injected = InjectedAttention(layers, injection.mapping.expand(2, -1, -1), weight)
    z, t, text = (x.expand(2, *x.shape[1:]) for x in rows(model, 1))
    with counted_rows(model, found):
        model.predict(z, t, text, AttentionControl(injected=injected))
    assert (found.rows, found.repeated) == (2, 0)


def test_slots_without_a_job_are_counted(tiny):
    """Jobs of 1, 3 and 2 updates in two slots: the third starts when the first is through."""
    engine, found = Engine(tiny.model, slots=2, kept_steps=4, compile="off"), Occupancy(3)
    jobs = [make_job(tiny.model, id, iterations=n) for id, n in (("a", 1), ("b", 3), ("c", 2))]
    with counted_rows(tiny.model, found):
        list(engine.run(jobs))
    # a: iterations 0-1, then c: 2-4; b: 0-3; so c is alone in iteration 4.
    assert idle_iterations(engine) == 0
    comparison = 4 + 2  # of a step of two slots with that of one, before the batch shrinks
    assert found.rows == 9 * 4 * 2 + comparison


@pytest.mark.slow
def test_a_run_of_counterfactuals():
    found = occupancy.measure_occupancy(3)
    assert found.jobs == 3 and 0.5 < found.share <= 1
    assert found.repeated > 0, "three photos are inverted in a batch of four rows"
