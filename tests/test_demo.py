"""The demo: what it plans, and one small run of it."""

import inspect
import json
from dataclasses import replace

import pytest

from fastdigin import embedded as world
from fastdigin.cli import main
from fastdigin.demo import demo_parts, neuron_counterfactual_plans
from fastdigin.engine.engine import Engine


@pytest.fixture
def planned(embedded, monkeypatch):
    """Job ids per task for a number of jobs, without running them."""
    from fastdigin.tasks import counterfactual as cf
    from fastdigin.tasks import disagreement as dis
    from fastdigin.tasks import neuron_counterfactual as ncf
    from fastdigin.tasks import neurons as neu

    ids: dict[str, list[str]] = {}

    def note(module, function, jobs_of):
        def run(*arguments, skip=(), **options):
            given = dict(zip(signature.parameters, arguments, strict=False)) | options
            ids[module.TASK] = [id for id in jobs_of(given) if id not in skip]
            return iter(())

        signature = inspect.signature(getattr(module, function))
        monkeypatch.setattr(module, function, run)

    note(cf, "counterfactuals", lambda o: cf.job_ids(o["images"], o["classifier"]))
    note(dis, "disagreements",
         lambda o: [dis.job_id(c, n) for c in o["classes"] for n in range(o["seeds"])])  # fmt: skip
    note(neu, "visualise_neurons", lambda o: [neu.job_id(n, "max", 0) for n in o["neurons"]])
    note(ncf, "neuron_counterfactuals",
         lambda o: ncf.job_ids(o["images"], o["neurons"], o["directions"]))  # fmt: skip

    def planned(count):
        ids.clear()
        parts = demo_parts(Engine(embedded), count, seed=0)
        for part in parts:
            list(part.run((), None))
        return {part.task: part.ids for part in parts}, dict(ids)

    return planned


@pytest.mark.parametrize("count", [1, 4, 7, 40])
def test_exactly_so_many_distinct_jobs(planned, count):
    """And those that a part names are those that its task is asked for."""
    named, ids = planned(count)
    assert set(named) == set(ids) and len(named) == 4
    for task, names in ids.items():
        assert len(named[task]) == len(set(named[task])) == count, task
        assert set(named[task]) == set(names), task


def test_a_longer_demo_continues_a_shorter_one(planned):
    _, few = planned(4)
    _, many = planned(7)
    assert all(set(few[task]) <= set(many[task]) for task in few)


def test_neurons_are_raised_where_their_background_is_not(planned):
    photos = {p.id: p for p in world.photos()}
    background_of = {n[0]: background for background, n in world.planted_neurons().items()}
    plans = [plan for plan, _ in zip(neuron_counterfactual_plans(), range(24), strict=False)]
    for item, neuron, direction in plans:
        assert (photos[item.id].background == background_of[neuron]) == (direction == "min")
        assert item.source == photos[item.id].garment
    six = {(neuron, direction) for _, neuron, direction in plans[:6]}
    assert len(six) == 6  # every background, both ways
    # Photos of the garment that belongs to the background come first.
    garment_of = {background: garment for garment, background in world.PLANTED.items()}
    for item, neuron, _ in plans[:6]:
        assert photos[item.id].garment == garment_of[background_of[neuron]]


@pytest.fixture
def quick(monkeypatch):
    """Settings of all four tasks that take seconds."""
    from fastdigin.tasks import counterfactual, disagreement, neuron_counterfactual, neurons

    for module, less in (
        (counterfactual, {"injection_fractions": (0.5,), "null_text_steps": 1}),
        (disagreement, {"draws": 2}),
        (neurons, {"samples_per_word": 1}),
        (neuron_counterfactual, {"null_text_steps": 1}),
    ):
        settings = module.EMBEDDED
        short = replace(settings.optimisation, steps=2, iterations=1)
        monkeypatch.setattr(module, "EMBEDDED", replace(settings, optimisation=short, **less))


def test_demo_runs_and_continues(quick, tmp_path, capsys):
    check_demo(tmp_path / "demo", capsys)


@pytest.mark.slow
def test_demo_runs_as_it_is(tmp_path, capsys):
    check_demo(tmp_path / "demo", capsys)


def check_demo(out, capsys):
    arguments = ["demo", "--per-task", "1", "--out", str(out), "--seed", "3"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in captured.out.splitlines()] == records
    assert [r["task"] for r in records] == [
        "counterfactual", "disagreement", "neurons", "neuron-counterfactual",
    ]  # fmt: skip
    assert all(r["status"] == "done" for r in records)
    assert (out / "report.html").stat().st_size > 50_000
    before = (out / "results.jsonl").read_bytes()
    assert main(arguments) == 0
    assert (out / "results.jsonl").read_bytes() == before
    shown = capsys.readouterr()
    assert "report:" in shown.out and "Warning" not in captured.err + shown.err
