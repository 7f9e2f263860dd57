"""fastdigin bench compile on a tiny model, with a backend that compiles nothing."""

import pytest
import torch
from tiny import build_tiny

from fastdigin.engine import compile_choice
from fastdigin.errors import UserError
from fastdigin_bench.compile import TOLERANCE, agreement, measure


def test_every_role_is_a_row(monkeypatch):
    monkeypatch.setattr(compile_choice, "BACKEND", "eager")
    rows = measure(build_tiny(levels=1).model, slots=1, repeats=2)
    assert [row["role"] for row in rows] == ["forward", "joint", "kept"]
    for row in rows:
        assert row["error"] < 1e-12
        assert row["ratio_low"] <= row["ratio_high"] and row["milliseconds"] > 0


def test_no_speed_of_other_results():
    right = (torch.tensor([1.0, -4.0]), torch.tensor([100.0]))
    near = (torch.tensor([1.0, -4.0 + 2 * TOLERANCE]), right[1])
    assert agreement("joint", near, right) == pytest.approx(TOLERANCE / 2, rel=0.01)
    for wrong in (right[0] + 8 * TOLERANCE, right[0] * float("nan")):
        with pytest.raises(UserError, match="compiled joint differs by"):
            agreement("joint", (wrong, right[1]), right)
