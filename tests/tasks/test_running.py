"""Tasks that share the engine's queue: the same records as one after the other."""

from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin.tasks.running import run_together


@pytest.fixture
def tasks(engine, clean, spurious, quick):
    """Two tasks of two images each: the engine of these tests has two slots."""
    return [
        fd.Disagreements(
            engine=engine, f=clean, g=spurious, classes=["bag", "boot"],
            settings=fd.DisagreementSettings(optimisation=quick),
        ),
        fd.Disagreements(
            engine=engine, f=spurious, g=clean, classes=["sandal", "dress"],
            settings=fd.DisagreementSettings(optimisation=replace(quick, iterations=1)),
        ),
    ]  # fmt: skip


def test_together_they_make_what_each_makes_alone(tasks):
    alone = [(task, record) for task in tasks for record in task.run()]
    together = list(run_together(tasks, [(), ()]))
    assert {(id(t), r.id) for t, r in together} == {(id(t), r.id) for t, r in alone}
    for task, record in alone:
        (again,) = (r for t, r in together if t is task and r.id == record.id)
        assert again.history == record.history and torch.equal(again.image, record.image)


def test_they_share_batches_and_progress(engine, tasks):
    """Three images in two slots: an iteration of the second task goes beside one of the first."""
    before, shares = engine.slot_iterations, []
    records = list(run_together(tasks, [("bag-000",), ()], shares.append))
    assert len(records) == 3 and sum(shares) == pytest.approx(3)
    # 3 evaluations of one image and 2 of each of two: 7, and the batches were never wider.
    assert engine.slot_iterations - before == 7


def test_what_fails_in_one_stays_with_it(tasks, monkeypatch):
    def failing(request):
        raise fd.UserError(f"{request.id} will not do")

    monkeypatch.setattr(tasks[1], "check", lambda r: failing(r) if r.id[0] == "s" else r)
    found = {record.id: (task, record.status) for task, record in run_together(tasks, [(), ()])}
    assert found["sandal-000"] == (tasks[1], "failed")
    assert [found[f"{c}-000"] for c in ("bag", "boot", "dress")] == [
        (tasks[0], "done"), (tasks[0], "done"), (tasks[1], "done")
    ]  # fmt: skip
    monkeypatch.setattr(tasks[1], "check", failing)
    with pytest.raises(fd.UserError, match="will not do"):
        run_together(tasks, [(), ()])


def test_an_id_of_two_tasks_is_refused(tasks):
    with pytest.raises(fd.UserError, match="'bag-000'"):
        run_together([tasks[0], replace(tasks[0], seed=5)], [(), ()])
