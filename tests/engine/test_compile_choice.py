"""When "auto" compiles: from scripted times, and from those of a backend that compiles nothing."""

import logging
from dataclasses import replace

import pytest
from pretended import PretendedGpu
from tiny import make_job

from fastdigin import hardware
from fastdigin.engine import compile_choice
from fastdigin.engine.compile_choice import BatchKind, CompileChoice, Gain, Work, work_ahead
from fastdigin.engine.compiled import CompiledStepFunctions, GraphKey
from fastdigin.engine.costs import step_inputs
from fastdigin.engine.engine import Engine
from fastdigin.engine.graphs import Graphs
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.slot import Slot
from fastdigin.errors import UserError
from fastdigin.hardware import Hardware

FORWARD, JOINT = (GraphKey(role, 2, True, False) for role in ("forward", "joint"))
WORK = Work(BatchKind(2, guided=True, text_length=16), frozenset({FORWARD, JOINT}), passes=1000.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_choice, "cannot_compile", lambda device: None)


class Clock:
    """Scripted seconds of a step: uncompiled, compiled for the first time, and compiled.

    A step that has no time may not be asked for. The first compiled one makes a graph.
    """

    def __init__(self, uncompiled, first=None, compiled=None):
        self.uncompiled, self.first, self.compiled = uncompiled, first, compiled

    def __call__(self, functions, inputs, kept):
        assert not kept and len(inputs[0]) == 2
        functions = getattr(functions, "compiled", functions)
        if not isinstance(functions, CompiledStepFunctions):
            return self._told(self.uncompiled)
        if functions.graphs[JOINT]:
            return self._told(self.compiled)
        functions.graphs[JOINT] += 1
        return self._told(self.first)

    def _told(self, seconds):
        assert seconds is not None, "nobody may time this"
        if isinstance(seconds, Exception):
            raise seconds
        return seconds


def choice_of(model, *seconds):
    return CompileChoice(model, "auto", lambda: 2, timer=Clock(*seconds))


def test_a_saving_must_exceed_its_price():
    assert Gain(seconds=10, speedup=2).pays(graphs=4, seconds_of_work=81)
    assert not Gain(seconds=10, speedup=2).pays(graphs=4, seconds_of_work=79)
    assert not Gain(seconds=10, speedup=0.9).pays(graphs=0, seconds_of_work=1e9)


def test_short_work_is_not_even_timed(model):
    short = replace(WORK, passes=compile_choice.FEWEST_PASSES - 1)
    assert not choice_of(model, None).compiles(short)


def test_long_work_is_compiled_once_and_the_figures_are_remembered(model, caplog):
    with caplog.at_level(logging.INFO, "fastdigin"):
        assert choice_of(model, 60.0, 100.0, 20.0).compiles(WORK)
    assert "(assumed)" in caplog.text and "3.00x as fast, after 80 s" in caplog.text

    # Another process: 2 graphs of 80 s for two thirds of 1000 steps.
    caplog.clear()
    with caplog.at_level(logging.INFO, "fastdigin"):
        assert not choice_of(model, 0.2).compiles(WORK)
        assert choice_of(model, 0.3, 90.0, 0.1).compiles(WORK)
    assert "(measured)" in caplog.text


@pytest.mark.parametrize("device", [Hardware(), PretendedGpu(), PretendedGpu(graphs=False)])
def test_gpus_have_assumptions_of_their_own(model, device):
    """Of 2.5 s of work a module two graphs take 0.3 s, for a fifth of it; on CPUs 0.6 s for 1/6."""
    clock = Clock(2.5e-3 * len(list(model.unet.modules())), 0.2, 0.1)
    with hardware.pretend(device):
        graphs = Graphs(device) if device.has_graphs else None
        choice = CompileChoice(model, "auto", lambda: 2, graphs, timer=clock)
        assert choice.compiles(WORK) == device.is_gpu
        compiled, functions = choice.of(True), choice.of(False)
    assert (graphs is None) == isinstance(compiled, CompiledStepFunctions)
    assert (graphs is None) == (type(functions) is StepFunctions)


def test_what_is_compiled_already_serves_short_work_too(model):
    choice, joint = choice_of(model, 60.0, 100.0, 20.0), replace(WORK, graphs=frozenset({JOINT}))
    assert choice.compiles(joint)
    assert choice.compiles(replace(joint, passes=1.0))
    assert not choice.compiles(replace(WORK, passes=1.0)), "its forward is not compiled"


@pytest.mark.parametrize("first", [100.0, RuntimeError("internal compiler error")], ids=str)
def test_what_is_no_faster_or_fails_is_given_up(model, first, caplog):
    clock = Clock(60.0, first, 61.0)
    choice = CompileChoice(model, "auto", lambda: 2, timer=clock)
    with caplog.at_level(logging.WARNING, "fastdigin"):
        assert not choice.compiles(WORK)
    assert ("internal compiler error" in caplog.text) == isinstance(first, Exception)
    clock.uncompiled = None
    assert not choice.compiles(replace(WORK, passes=1e9))


def test_a_real_step_is_timed_and_its_graph_is_made(model, monkeypatch):
    """With a backend that compiles nothing, whatever it then decides."""
    monkeypatch.setattr(compile_choice, "BACKEND", "eager")
    monkeypatch.setattr(compile_choice, "ASSUMED_SECONDS_A_MODULE", {"cpu": 0})
    choice = CompileChoice(model, "auto", lambda: 2)
    first = choice.compiles(WORK)
    assert choice.graphs == {JOINT: 1}
    assert choice.compiles(replace(WORK, graphs=frozenset({JOINT}))) == first
    assert choice.graphs == {JOINT: 1}
    for kept in (False, True):
        inputs = step_inputs(model, 2, True, 16)
        assert compile_choice.step_seconds(choice.of(False), inputs, kept) > 0


def test_where_nothing_can_be_compiled(model, monkeypatch, caplog):
    monkeypatch.setattr(compile_choice, "cannot_compile", lambda device: "there is no compiler")
    with caplog.at_level(logging.INFO, "fastdigin"):
        assert not choice_of(model, None).compiles(WORK)
    assert "no compiler" in caplog.text
    with pytest.raises(UserError, match="compile='on'.*no compiler"):
        Engine(model, compile="on")
    Engine(model, compile="off")


def test_recompiles_are_the_graphs_beyond_one_a_key(model):
    engine = Engine(model, slots=2)
    assert engine.graphs == {} and engine.recompiles == 0
    engine._choice.functions.graphs.update({JOINT: 1, FORWARD: 3})
    assert engine.graphs == {JOINT: 1, FORWARD: 3} and engine.recompiles == 2


def test_bad_modes(model):
    with pytest.raises(UserError, match="compile must be one of auto, on, off, got 'maybe'"):
        Engine(model, compile="maybe")


def test_the_work_ahead_counts_updates_of_the_batch_and_of_announced_jobs(model):
    slots = [Slot(make_job(model, iterations=n, steps=4), model) for n in (2, 6)]
    work = work_ahead(slots, 0, 2, True, jobs_left=4)
    assert work.passes == (2 + 6 + 4 * 4) / 2 * 4
    assert work.graphs == {FORWARD, JOINT}
    kept = work_ahead(slots, 4, 2, True, jobs_left=0)
    assert {key.role for key in kept.graphs} == {"kept"} and kept.passes == 16
    evaluated = [Slot(make_job(model, iterations=0), model)]
    assert {key.role for key in work_ahead(evaluated, 0, 2, True, 0).graphs} >= {"forward"}


@pytest.mark.parametrize(("as_list", "expected"), [(True, 2), (False, 0)])
def test_the_engine_tells_how_many_jobs_it_knows_of(model, monkeypatch, as_list, expected):
    seen = []
    monkeypatch.setattr(CompileChoice, "compiles", lambda self, work: seen.append(work))
    jobs = [make_job(model, str(i), steps=1, iterations=1) for i in range(4)]
    list(Engine(model, slots=2).run(jobs if as_list else (job for job in jobs)))
    assert seen[0].passes == 1 + expected / 2
