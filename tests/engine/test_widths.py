"""A batch shrinks where no bit changes, and nowhere else."""

import pytest
from tiny import make_job

from fastdigin.engine.engine import Engine
from fastdigin.engine.widths import Widths


@pytest.mark.parametrize("count", [1, 2])
def test_the_packaged_network_rounds_alike_for_any_number_of_slots(embedded, threads, count):
    threads(count)
    widths = Widths(embedded)
    for wide, narrow in ((8, 6), (8, 4), (8, 3), (8, 2), (8, 1), (4, 2), (2, 1)):
        assert widths.agree(wide, narrow, guided=True, text_length=embedded.text_length), narrow


@pytest.fixture
def depends_on_rows(model, monkeypatch):
    """A model whose output is a little greater the more rows there are."""
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda z, *rest: predict(z, *rest) + 1e-9 * len(z))
    return model


def test_a_network_whose_rows_are_not_alike(depends_on_rows):
    widths = Widths(depends_on_rows)
    length = depends_on_rows.text_length
    assert not widths.agree(4, 2, guided=True, text_length=length)
    assert widths.agree(4, 3, guided=True, text_length=length), "filled up to whole blocks"


def test_a_batch_shrinks_to_the_jobs_that_are_left(model):
    engine = Engine(model, slots=4, compile="off")
    assert evaluated(engine) == [4, 4, 2, 1], "2 evaluations of two jobs, 3 of one, 4 of another"
    assert engine.occupancy == 1


def test_a_batch_keeps_its_width_where_bits_would_change(depends_on_rows):
    engine = Engine(depends_on_rows, slots=4, compile="off")
    assert evaluated(engine) == [4, 4, 4, 4]
    assert engine.occupancy == 11 / 16


def evaluated(engine):
    """How many slots each iteration of four jobs evaluates; none is lost."""
    lengths = {"a": 1, "b": 3, "c": 1, "d": 2}
    jobs = [make_job(engine.model, id, iterations=n, steps=2) for id, n in lengths.items()]
    counts, results = [], []
    engine.submit(jobs)
    while engine.busy:
        before = engine.slot_iterations
        results += engine.step()
        counts.append(engine.slot_iterations - before)
    assert {r.id: r.iterations for r in results} == lengths
    return counts
