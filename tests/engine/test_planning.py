"""Memory budgets: what they mean, what is planned from them, and what happens when they fail."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny import make_job

from fastdigin import hardware
from fastdigin.engine import memory
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError

CPU, STEPS = torch.device("cpu"), 6


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model


def jobs(model, count):
    return [make_job(model, id=str(seed), seed=seed, steps=STEPS) for seed in range(count)]


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("1.5 gb", 1.5e9), ("500MB", 5e8), ("64KiB", 65536), (1000, 1000)],
)
def test_sizes_are_read(text, size):
    assert memory.parse_memory(text, CPU) == size


@pytest.mark.parametrize("text", ["", "lots", "12 parsec", "-3GB", "0", 0, "1.2.3GB", "GiB"])
def test_malformed_sizes_are_refused_before_any_work(model, text):
    with pytest.raises(UserError, match="memory must be 'auto' or a size like '12GiB'"):
        Engine(model, memory=text)


def test_slots_must_be_positive(model):
    with pytest.raises(UserError, match="slots must be at least 1"):
        Engine(model, slots=0)


def test_a_budget_that_holds_nothing_is_an_error_before_work(model):
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 2 slots with 0 kept steps"):
        list(Engine(model, memory="10KiB", slots=2).run(jobs(model, 2)))
    with pytest.raises(UserError, match="memory: 10 KiB do not hold 1 slot with"):
        Engine(model, memory="10KiB").slots  # noqa: B018


def test_auto_goes_on_with_the_least(model, monkeypatch, caplog):
    monkeypatch.setattr(hardware.Hardware, "free_memory", lambda self: 1000)
    engine = Engine(model)
    with caplog.at_level(logging.WARNING):
        (result,) = engine.run(jobs(model, 1))
    assert result.status == "done" and (engine.slots, engine.plan.kept_steps) == (1, 0)
    assert "trying all the same" in caplog.text


def test_slots_come_before_kept_steps(model):
    """As many slots as fit without kept steps, eight at most; what is left keeps steps."""
    planned = {}
    for exponent in range(80):
        engine = Engine(model, memory=int(2**20 * 1.1**exponent))
        try:
            planned[exponent] = engine.slots
        except UserError:
            assert not planned, "what holds a slot holds it with more memory as well"
    slots = list(planned.values())
    assert slots == sorted(slots) and set(slots) == {1, 2, 4, 8}
    first = min(exponent for exponent, found in planned.items() if found == 8)
    tight, ample = (Engine(model, memory=int(2**20 * 1.1**e)) for e in (first, first + 40))
    for engine in (tight, ample):
        list(engine.run(jobs(model, 8)))
    assert tight.plan.kept_steps < ample.plan.kept_steps == STEPS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert memory.is_out_of_memory(error) is expected
