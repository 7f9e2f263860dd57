"""fastdigin bench scaling: what it times, and how it counts idle slots."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
from tiny import make_injection, make_job, make_source, normal

from fastdigin.models.attention import AttentionControl, InjectedAttention, SourceAttention
from fastdigin_bench import occupancy, scaling
from fastdigin_bench.occupancy import LENGTHS, RandomLengths, RowCounter
from fastdigin_bench.scaling import Point


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "VARIED", {"jobs": (1, 2), "steps": (2,), "resolution": (32,)})
    monkeypatch.setattr(scaling, "Point", lambda **given: Point(**({"steps": 2} | given)))
    options = Namespace(results=tmp_path, repeats=2, occupancy=False)
    assert scaling.run(options) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "scaling.json").read_text())
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    assert [row["jobs"] for row in last["jobs"]] == [1, 2]
    assert [row["resolution"] for row in last["resolution"]] == [32]
    for row in (*last["jobs"], *last["steps"], *last["resolution"]):
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["images_per_min"] == pytest.approx(
            60 * row["jobs"] / (sum(row["seconds"]) / 2), rel=0.01
        )


def rows(model, count):
    z, text = normal(count, *model.latent_shape), normal(count, 16, 16, seed=1)
    return z, torch.full((count,), 501), text


def test_repeated_rows_are_counted(tiny):
    model = tiny.model
    z, t, text = rows(model, 3)
    padded = torch.tensor([0, 1, 2, 2])
    with RowCounter(model) as counter:
        expected = model.predict(z[padded], t[padded], text[padded])
        assert (counter.rows, counter.repeated) == (4, 1)
        model.predict(z + 1, t, text)
        model.predict(z + 1, t - 1, text)
        model.predict(z + 1, t - 1, text + 1)
        assert (counter.rows, counter.repeated) == (13, 1)
        z[0] = 7  # one goes on, two wait
        model.predict(z, t, text)
        z[0] = 8
        model.predict(z, t, text)
        assert (counter.rows, counter.repeated) == (19, 3)
    model.predict(z, t, text)
    assert counter.rows == 19
    assert torch.equal(expected[2], expected[3])


def test_candidates_of_one_photo_are_no_repetition(tiny):
    model = tiny.model
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
    with RowCounter(model) as counter:
        model.predict(z, t, text, AttentionControl(injected=injected))
    assert (counter.rows, counter.repeated) == (2, 0)


def test_slots_without_a_job_are_counted(tiny, monkeypatch):
    """Jobs of 1, 3 and 2 updates in two slots: the third starts when the first is through."""
    lengths = {"a": 1, "b": 3, "c": 2}
    monkeypatch.setattr(
        occupancy.random, "Random", lambda id: Namespace(randint=lambda *_: lengths[id])
    )
    engine = RandomLengths(tiny.model, slots=2, kept_steps=4)
    with RowCounter(tiny.model) as counter:
        found = list(engine.run(make_job(tiny.model, id, seed=n) for n, id in enumerate("abc")))
    assert {r.id: r.iterations for r in found} == lengths
    # a: iterations 0-1, then c: 2-4; b: 0-3; so one place is idle in iteration 4.
    assert engine.idle_places == 1
    assert counter.rows == 5 * 4 * 4 and counter.repeated == 0


def test_lengths_are_random_and_the_same_every_time(tiny):
    engine = RandomLengths(tiny.model, slots=1)
    jobs = [make_job(tiny.model, f"{n}") for n in range(40)]
    found = [engine._with_length(job).settings.iterations for job in jobs]
    assert found == [engine._with_length(job).settings.iterations for job in jobs]
    assert min(found) >= LENGTHS[0] and max(found) <= LENGTHS[1] and len(set(found)) > 10
    assert engine._with_length(make_job(tiny.model, iterations=0)).settings.iterations == 0


@pytest.mark.slow
def test_a_run_of_counterfactuals(monkeypatch):
    monkeypatch.setattr(occupancy, "STEPS", 2)
    monkeypatch.setattr(occupancy, "LENGTHS", (1, 2))
    found = occupancy.measure_occupancy(3)
    assert found.jobs == 3 and 0.5 < found.share <= 1
    assert found.repeated > 0, "three photos are inverted in a batch of four rows"
