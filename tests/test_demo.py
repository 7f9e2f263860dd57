"""The demo: what it plans, and one small run of it."""

import json
from dataclasses import replace

import pytest

import fastdigin as fd
from fastdigin import embedded as world
from fastdigin.cli import main
from fastdigin.demo import demo_tasks, neuron_counterfactual_plans


@pytest.fixture(scope="module")
def engine(embedded):
    return fd.Engine(embedded)


def planned(engine, count):
    """Job ids per task for a number of jobs, without running them."""
    tasks = demo_tasks(engine, count, seed=0)
    return {task.name: [request.id for request in task.requests] for task in tasks}


def test_exactly_so_many_distinct_jobs_and_more_go_on_with_fewer(engine):
    fewer = dict.fromkeys(("counterfactual", "disagreement", "neurons", "neuron-counterfactual"))
    for count in (1, 4, 7, 40):
        found = planned(engine, count)
        assert list(found) == list(fewer)
        for task, ids in found.items():
            assert len(ids) == len(set(ids)) == count and set(fewer[task] or ()) <= set(ids), task
        fewer = found


def test_neurons_are_raised_where_their_background_is_not():
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
    for task, less in (
        (fd.Counterfactuals, {"injection_fractions": (0.5,), "null_text_steps": 1}),
        (fd.Disagreements, {"draws": 2}),
        (fd.NeuronVisualisations, {"samples_per_word": 1}),
        (fd.NeuronCounterfactuals, {"null_text_steps": 1}),
    ):
        settings = task.embedded_settings
        short = replace(settings.optimisation, steps=2, iterations=1)
        brief = replace(settings, optimisation=short, **less)
        monkeypatch.setattr(task, "embedded_settings", brief)


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
    assert sorted(r["task"] for r in records) == [
        "counterfactual", "disagreement", "neuron-counterfactual", "neurons",
    ]  # fmt: skip
    assert all(r["status"] == "done" for r in records)
    assert (out / "report.html").stat().st_size > 50_000
    before = (out / "results.jsonl").read_bytes()
    assert main(arguments) == 0
    assert (out / "results.jsonl").read_bytes() == before
    shown = capsys.readouterr()
    assert "report:" in shown.out and "Warning" not in captured.err + shown.err
