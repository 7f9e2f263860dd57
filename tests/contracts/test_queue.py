"""The queue: submit and step, stages among the jobs, and what each of them may rely on."""

import threading
import time
from dataclasses import dataclass, field, replace

import pytest
import torch
from tiny import make_job

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Unmade
from fastdigin.engine.queue import Search, Stage
from fastdigin.errors import UserError


def job(tiny, id: str, iterations: int = 1, **options) -> Job:
    return make_job(tiny.model, id, iterations=iterations, steps=2, **options)


def drain(engine) -> list[Result]:
    results = []
    while engine.busy:
        results += engine.step()
    return results


@dataclass
class Makes:
    """A stage that returns what it was given, and notes when."""

    items: list
    ran: list = field(default_factory=list)
    error: Exception | None = None

    @property
    def count(self) -> int:
        return len(self.items)

    def run(self, engine, advance):
        self.ran.append(engine.waiting)
        advance(0.5)
        if self.error is not None:
            raise self.error
        return self.items

    def failed(self, error):
        return [Result.failure(Unmade(item.id, item.seed, item.info), error) for item in self.items]


def test_a_step_advances_every_slot_by_one_iteration(tiny):
    engine = Engine(tiny.model, slots=2)
    engine.submit([job(tiny, "long", 3), job(tiny, "short", 1), job(tiny, "last", 0)])
    assert engine.busy and engine.waiting == 3
    seen = []
    while engine.busy:
        done, waiting = [result.id for result in engine.step()], engine.waiting
        seen.append((done, waiting))
    # An update more is an evaluation more: 4, 2 and 1.
    assert seen == [([], 1), (["short"], 1), (["last"], 0), (["long"], 0)]
    assert engine.step() == [], "nothing is left to do"


def test_steps_give_the_bits_of_a_run(tiny):
    jobs = [job(tiny, str(n), seed=n, iterations=n % 3) for n in range(5)]
    expected = list(Engine(tiny.model, slots=2).run(jobs))
    engine = Engine(tiny.model, slots=2)
    engine.submit(jobs[:2])
    actual = engine.step()
    engine.submit(jobs[2:])
    actual += drain(engine)
    assert [r.id for r in actual] == [r.id for r in expected]
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.image, e.image) and a.history == e.history


def test_a_batch_is_as_wide_as_its_jobs_are_many(tiny, rows):
    engine = Engine(tiny.model, slots=8, kept_steps=0)
    engine.submit([job(tiny, str(n), n + 1) for n in range(4)])
    engine.step()
    engine.submit([job(tiny, "late", 4)])
    drain(engine)
    assert max(rows) == 8, "four slots with two branches each; the fifth job took a free one"
    assert set(rows) == {8, 4, 2} and rows[-1] == 2, "with the last of them the batch shrinks"
    rows.clear()
    engine.submit([job(tiny, "alone")])
    drain(engine)
    assert set(rows) == {2}


def test_a_stage_runs_when_a_slot_is_free_and_its_jobs_keep_its_place(tiny):
    inner = Makes([job(tiny, "b"), job(tiny, "c")])
    outer = Makes([inner, job(tiny, "d")])
    engine = Engine(tiny.model, slots=1)
    engine.submit([job(tiny, "a"), outer, job(tiny, "e")])
    assert isinstance(outer, Stage) and engine.waiting == 4
    assert engine.step() == [] and engine.waiting == 3
    assert [r.id for r in engine.step()] == ["a"]
    assert not outer.ran, "it waits for a slot"
    assert [r.id for r in drain(engine)] == ["b", "c", "d", "e"]
    assert outer.ran == [1] and inner.ran == [2]


def test_progress_is_told_in_iterations(tiny):
    told = []
    engine = Engine(tiny.model, slots=2)
    engine.submit([job(tiny, "a", 2), Makes([job(tiny, "b", 1)])])
    while engine.busy:
        engine.step(told.append)
    assert told[0] == 0.5 and sum(told) == pytest.approx(0.5 + 2 + 2 + 1)


@pytest.mark.parametrize(
    ("error", "message"),
    [(UserError("no such photo"), "no such photo"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_stage_that_fails_fails_its_own_jobs_alone(tiny, error, message):
    info = object()
    lost = [replace(job(tiny, "lost", seed=4), info=info), job(tiny, "lost too")]
    queue = [job(tiny, "a"), Makes(lost, error=error), job(tiny, "b")]
    results = {r.id: r for r in Engine(tiny.model, slots=2).run(queue)}
    assert {id: r.status for id, r in results.items()} == {
        "a": "done", "lost": "failed", "lost too": "failed", "b": "done",
    }  # fmt: skip
    assert results["lost"].error == message and results["lost"].image is None
    assert results["lost"].job.info is info and results["lost"].job.seed == 4


@pytest.mark.parametrize("guilty", ["a", "b", "c"])
def test_of_a_stage_with_parts_the_guilty_job_fails_alone(tiny, guilty):
    class Parted(Makes):
        def parts(self, out_of_memory):
            return [Parted([item]) for item in self.items] if self.count > 1 else []

        def run(self, engine, advance):
            if guilty in [item.id for item in self.items]:
                raise ValueError("no foreground")
            return self.items

    queue = [Parted([job(tiny, id) for id in "abc"]), job(tiny, "d")]
    results = list(Engine(tiny.model, slots=1).run(queue))
    assert [r.id for r in results] == list("abcd"), "they keep their place"
    errors = {r.id: r.error for r in results if r.status == "failed"}
    assert errors == {guilty: "ValueError: no foreground"}


def test_a_stage_may_return_results_that_are_known_already(tiny):
    known = Result.failure(Unmade("unreadable"), "no such file")
    results = Engine(tiny.model, slots=1).run([Makes([job(tiny, "a"), known, job(tiny, "b")])])
    assert [(r.id, r.status) for r in results] == [
        ("a", "done"), ("unreadable", "failed"), ("b", "done"),
    ]  # fmt: skip


def test_a_stage_that_returns_something_else_fails(tiny):
    class Wrong(Makes):
        def run(self, engine, advance):
            return [self.items[0], None]

    (result,) = Engine(tiny.model).run([Wrong([job(tiny, "a")])])
    assert result.status == "failed" and "jobs[1] is None" in result.error


def test_a_stage_may_evaluate_and_run_but_not_step(tiny, rows):
    class Uses(Makes):
        def run(self, engine, advance):
            self.found = engine.evaluate([job(tiny, "x")]), list(engine.run([job(tiny, "y")]))
            rows.clear()
            with pytest.raises(RuntimeError, match="called by a stage"):
                engine.step()
            return self.items

    stage = Uses([job(tiny, "e", 2)])
    engine = Engine(tiny.model, slots=4, kept_steps=0)
    engine.submit([*(job(tiny, id, 4) for id in "abc"), job(tiny, "d", 1), stage])
    assert sorted(r.id for r in drain(engine)) == list("abcde")
    assert [[r.id for r in results] for results in stage.found] == [["x"], ["y"]]
    assert set(rows) == {8}, "the batch that waited is as wide as before"


def test_a_search_starts_from_the_best_of_each_group(tiny):
    """The truth: each candidate evaluated by itself."""
    groups = [[job(tiny, f"{group}", seed=10 * group + n) for n in range(3)] for group in range(2)]
    single = job(tiny, "single", seed=7)
    engine = Engine(tiny.model, slots=4)
    expected = {
        group[0].id: min(group, key=lambda j: engine.evaluate([j])[0].history[0]["total"])
        for group in groups
    }
    assert any(best is not group[0] for best, group in zip(expected.values(), groups, strict=True))
    search = Search([groups[0], [single], groups[1]])
    assert search.count == 3
    results = list(engine.run([search]))
    assert [r.id for r in results] == ["0", "single", "1"]
    for result in results:
        assert result.status == "done" and result.job is expected.get(result.id, single)


def test_a_search_takes_a_failing_candidate_for_the_worst(tiny):
    good, other = job(tiny, "a", seed=1), job(tiny, "a", seed=2)
    bad = replace(good, latents=good.latents[:1])
    (result,) = Engine(tiny.model).run([Search([[bad, good]])])
    assert result.job is good and result.status == "done"
    lone = job(tiny, "lone")
    search = Search([[good, other], [lone], [other, good]], by="no such loss")
    results = list(Engine(tiny.model).run([search]))
    assert sorted((r.id, r.status) for r in results) == [
        ("a", "failed"), ("a", "failed"), ("lone", "done"),
    ]  # fmt: skip
    assert all("no such loss" in r.error for r in results if r.status == "failed")


@pytest.mark.parametrize("stranger", [None, "a job", 3])
def test_whatever_is_not_a_job_is_refused_with_its_position(tiny, stranger):
    """An error, before anything is queued; None once ended the queue without a word."""
    jobs = [job(tiny, "a"), stranger, job(tiny, "b")]
    engine = Engine(tiny.model)
    message = rf"jobs\[1\] is {stranger!r}, wanted a Job or Stage"
    with pytest.raises(UserError, match=message):
        engine.submit(jobs)
    assert not engine.busy
    with pytest.raises(UserError, match=message):
        engine.run(jobs)
    with pytest.raises(UserError, match=message):
        list(engine.run(iter(jobs)))
    with pytest.raises(UserError, match=r"jobs\[1\]"):
        engine.evaluate(jobs)


def test_runs_side_by_side_do_not_mix(tiny):
    """A run has a queue of its own; so one that was abandoned leaves nothing behind."""
    engine = Engine(tiny.model, slots=2)
    next(engine.run([job(tiny, "left", 0), job(tiny, "behind", 0)]))
    engine.submit([job(tiny, "submitted", 2)])
    engine.step()
    left, right = engine.run([job(tiny, "a")]), engine.run([job(tiny, "b")])
    assert [(a.id, b.id) for a, b in zip(left, right, strict=True)] == [("a", "b")]
    assert [r.id for r in drain(engine)] == ["submitted"]


def test_threads_may_submit_while_another_steps(tiny):
    """200 jobs of four threads, in batches that are drained and begun anew all the time."""
    engine, threads = Engine(tiny.model, slots=4, kept_steps=0, compile="off"), []
    evaluated = make_job(tiny.model, iterations=0, steps=1)

    def submit(thread):
        for n in range(0, 50, 5):
            engine.submit([replace(evaluated, id=f"{thread} {n + k}") for k in range(5)])
            time.sleep(0.001 * thread)

    threads = [threading.Thread(target=submit, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    found = []
    while engine.busy or any(thread.is_alive() for thread in threads):
        assert engine.waiting >= 0
        found += engine.step()
    assert sorted(r.id for r in found) == sorted(f"{k} {n}" for k in range(4) for n in range(50))
