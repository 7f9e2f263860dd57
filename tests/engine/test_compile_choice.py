"""When "auto" compiles: from scripted times, without compiling anything."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tiny import build_tiny, make_job

from fastdigin.engine import compile_choice
from fastdigin.engine.compile_choice import CompileChoice, Measured, Work, work_ahead
from fastdigin.engine.compiled import GraphKey
from fastdigin.engine.engine import Engine
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError

KEYS = frozenset({GraphKey("forward", 2, True, False), GraphKey("joint", 2, True, False)})
WORK = Work(KEYS, slots=2, guided=True, text_length=16, passes=1000.0)


@pytest.fixture(scope="module")
def model():
    return build_tiny(levels=1).model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_choice, "cannot_compile", lambda device: None)


@pytest.fixture
def choice_of(model, monkeypatch):
    """choice_of(eager step, first compiled one, compiled step) in seconds: an "auto" choice.

    None for the compiled ones: nobody may ask for them.
    """

    def build(eager, first=None, compiled=None):
        choice, calls = CompileChoice(model, "auto", lambda: 2), []

        def times(function, device):
            calls.append(name := function())
            if name == "eager":
                return eager
            assert first is not None, "it was compiled"
            if calls.count("compiled") == 1:
                choice.functions.graphs[GraphKey("joint", 2, True, False)] += 1
                if isinstance(first, Exception):
                    raise first
                return first
            return compiled

        monkeypatch.setattr(compile_choice, "_seconds", times)
        monkeypatch.setattr(
            choice,
            "_there_and_back",
            lambda compiled, joint, place: lambda: "compiled" if compiled else "eager",
        )
        return choice

    return build


def test_a_saving_must_exceed_its_price():
    assert Measured(seconds=10, speedup=2).pays(graphs=4, seconds_of_work=81)
    assert not Measured(seconds=10, speedup=2).pays(graphs=4, seconds_of_work=79)
    assert not Measured(seconds=10, speedup=0.9).pays(graphs=0, seconds_of_work=1e9)


def test_short_work_is_not_even_timed(choice_of):
    short = replace(WORK, passes=compile_choice.FEWEST_PASSES - 1)
    assert not choice_of(eager=None).compiles(short)


def test_long_work_is_compiled_once_and_the_figures_are_remembered(choice_of, caplog):
    with caplog.at_level(logging.INFO, "fastdigin"):
        choice = choice_of(eager=60.0, first=100.0, compiled=20.0)
        assert choice.compiles(WORK)
    assert "(assumed)" in caplog.text and "3.00x as fast" in caplog.text
    assert choice._expected((2, True, 16)) == Measured(80.0, 3.0)

    # Another process: 2 graphs of 80 s for two thirds of 1000 steps.
    caplog.clear()
    with caplog.at_level(logging.INFO, "fastdigin"):
        assert not choice_of(eager=0.2).compiles(WORK)
        assert choice_of(eager=0.3, first=90.0, compiled=0.1).compiles(WORK)
    assert "(measured)" in caplog.text


def test_what_is_compiled_already_serves_short_work_too(choice_of):
    choice = choice_of(eager=60.0, first=100.0, compiled=20.0)
    assert choice.compiles(replace(WORK, keys=frozenset({GraphKey("joint", 2, True, False)})))
    assert choice.compiles(
        replace(WORK, keys=frozenset({GraphKey("joint", 2, True, False)}), passes=1.0)
    )
    assert not choice.compiles(replace(WORK, passes=1.0))  # its forward is not compiled


@pytest.mark.parametrize("first", [100.0, RuntimeError("internal compiler error")], ids=str)
def test_what_is_no_faster_or_fails_is_given_up(choice_of, first, caplog):
    choice = choice_of(eager=60.0, first=first, compiled=61.0)
    with caplog.at_level(logging.WARNING, "fastdigin"):
        assert not choice.compiles(WORK)
    assert ("internal compiler error" in caplog.text) == isinstance(first, Exception)
    choice_of(eager=None)  # from now on nobody may time anything
    assert not choice.compiles(replace(WORK, passes=1e9))


def test_where_nothing_can_be_compiled(model, choice_of, monkeypatch, caplog):
    monkeypatch.setattr(compile_choice, "cannot_compile", lambda device: "there is no compiler")
    with caplog.at_level(logging.INFO, "fastdigin"):
        assert not choice_of(eager=None).compiles(WORK)
    assert "no compiler" in caplog.text
    with pytest.raises(UserError, match="compile='on'.*no compiler"):
        Engine(model, compile="on")
    Engine(model, compile="off")


def test_recompiles_are_the_graphs_beyond_one_a_key(model):
    engine = Engine(model, slots=2)
    assert engine.graphs == {} and engine.recompiles == 0
    one, other = GraphKey("joint", 2, True, False), GraphKey("forward", 2, True, False)
    engine._choice.functions.graphs.update({one: 1, other: 3})
    assert engine.graphs == {one: 1, other: 3} and engine.recompiles == 2


def test_bad_modes(model):
    with pytest.raises(UserError, match="compile must be one of auto, on, off, got 'maybe'"):
        Engine(model, compile="maybe")


def test_the_work_ahead_counts_updates_of_the_batch_and_of_announced_jobs(model):
    slots = [Slot(make_job(model, iterations=n, steps=4), model) for n in (2, 6)]
    work = work_ahead(slots, 0, 2, True, jobs_left=4)
    assert work.passes == (2 + 6 + 4 * 4) / 2 * 4
    assert work.keys == KEYS
    kept = work_ahead(slots, 4, 2, True, jobs_left=0)
    assert {key.role for key in kept.keys} == {"kept"} and kept.passes == 16
    evaluated = [Slot(make_job(model, iterations=0), model)]
    assert {key.role for key in work_ahead(evaluated, 0, 2, True, 0).keys} >= {"forward"}


@pytest.mark.parametrize(("as_list", "expected"), [(True, 2), (False, 0)])
def test_the_engine_tells_how_many_jobs_it_knows_of(model, monkeypatch, as_list, expected):
    seen = []
    monkeypatch.setattr(CompileChoice, "compiles", lambda self, work: seen.append(work))
    jobs = [make_job(model, str(i), steps=1, iterations=1) for i in range(4)]
    list(Engine(model, slots=2).run(jobs if as_list else (job for job in jobs)))
    assert seen[0].passes == 1 + expected / 2
